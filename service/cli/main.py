"""The command line, ``ih-grpo``. What is heavy is imported by the command that needs it."""

from __future__ import annotations

import json
import os
from importlib import import_module
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from service.cli.output import abort, explain, warn

app = typer.Typer(
    name="ih-grpo",
    help="Serve, train and try models that decide themselves when their code runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_console = Console(stderr=True)


def main() -> None:
    """Entry point of the console script."""
    app()


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"ih-grpo {installed_version('ih-grpo')}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        raise typer.Exit(2)


@app.command()
def serve(
    model: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint or PEFT adapter: directory or hub id. Default: the quickstart checkpoint."
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Base model of an adapter. Default: the one that the adapter names.")
    ] = None,
    served_model_name: Annotated[str | None, typer.Option(help="The name that clients ask for.")] = None,
    engine: Annotated[str | None, typer.Option(help="auto, transformers, vllm or remote.")] = None,
    engine_url: Annotated[
        list[str] | None, typer.Option(help="A vLLM server to sample on (remote); may be repeated.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(help="name=directory of a LoRA adapter to serve beside the model; may be repeated."),
    ] = None,
    vllm_arg: Annotated[
        list[str] | None, typer.Option(help="name=value of vLLM's engine arguments; may be repeated.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. Default: 8000.")] = None,
    sandbox: Annotated[
        str | None,
        typer.Option(
            help="Who holds the Docker socket: 'runner', or 'in-process' for this machine alone. "
            "Default: in-process on a loopback address where no runner is configured."
        ),
    ] = None,
    accept_weaker_isolation: Annotated[
        bool | None,
        typer.Option(
            "--accept-weaker-isolation",
            help="Serve with sandbox 'process', which holds less than containers.",
        ),
    ] = None,
    runner_url: Annotated[str | None, typer.Option(help="unix:/path/to.sock or host:port.")] = None,
    runner_token_file: Annotated[Path | None, typer.Option(help="The secret shared with the runner.")] = None,
    sandbox_image: Annotated[str | None, typer.Option(help="Image of the containers (in-process).")] = None,
    warm_containers: Annotated[int | None, typer.Option(help="Idle containers kept (in-process).")] = None,
    max_containers: Annotated[int | None, typer.Option(help="Containers at once (in-process).")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:1.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    max_slots: Annotated[int | None, typer.Option(help="Sequences in one batch.")] = None,
    max_concurrent_episodes: Annotated[int | None, typer.Option(help="Episodes that run at once.")] = None,
    strict_requests: Annotated[
        bool | None,
        typer.Option("--strict-requests", help="Reject fields that are unknown or have no effect."),
    ] = None,
    api_keys_file: Annotated[
        Path | None, typer.Option(help="File with one hashed API key a line (ih-grpo key).")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="console or json.")] = None,
) -> None:
    """Serve a checkpoint over an OpenAI-compatible API.

    Every setting, these and more, is also read from the environment, as IHGRPO_PORT.
    """
    flags: dict[str, Any] = {name: value for name, value in locals().items() if value is not None}
    if (arguments := flags.pop("vllm_arg", None)) is not None:
        flags["vllm_args"] = arguments
    from service.server.run import StartupError, serve_forever
    from service.server.settings import Settings, misspelt

    warn(*misspelt(os.environ))
    try:
        serve_forever(Settings(**flags))
    except ValidationError as error:
        abort(*explain(error))
    except StartupError as error:
        abort(str(error))


@app.command()
def chat(
    question: Annotated[str | None, typer.Argument(help="Ask this and leave. Else: converse.")] = None,
    url: Annotated[
        str, typer.Option(help="The server, with or without /v1.", envvar="IHGRPO_URL")
    ] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Default: the first that the server has.")] = None,
    api_key: Annotated[str | None, typer.Option(help="API key.", envvar="IHGRPO_API_KEY")] = None,
    eager: Annotated[bool, typer.Option(help="Let blocks start before they are asked for.")] = True,
) -> None:
    """Talk to a server; see its blocks wait, run and deliver, and a timeline of each episode."""
    from service.cli.chat import ChatError, converse

    try:
        converse(url, question=question, model=model, api_key=api_key, eager=eager)
    except ChatError as error:
        abort(str(error))


@app.command()
def key(
    name: Annotated[str, typer.Option(help="What logs call it; one word.")] = "client",
    rpm: Annotated[int | None, typer.Option(min=1, help="Requests a minute.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests at once.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="It may use the routes below /admin too.")] = False,
) -> None:
    """Make an API key: the secret for the client, and the line for the server's key file (api_keys_file)."""
    from service.api.auth import ADMIN, digest_of, new_key, parse_key

    secret = new_key()
    options = {"name": name, "rpm": rpm, "concurrency": concurrency, "scope": ADMIN if admin else None}
    line = f"sha256:{digest_of(secret).hex()}" + "".join(
        f" {option}={value}" for option, value in options.items() if value is not None
    )
    try:
        parse_key(line, hashed=True)
    except ValueError as error:
        abort(str(error))
    _console.print("[bold]The secret[/], shown this once, for the client's Authorization header:")
    _console.print(f"  {secret}", highlight=False, soft_wrap=True)
    _console.print("The line for the key file, which is on stdout:")
    typer.echo(line)


@app.command()
def runner(
    bind: Annotated[
        str, typer.Option(help="unix:/path/to.sock or host:port.", envvar="IHGRPO_RUNNER_BIND")
    ] = "unix:/run/ih-grpo/runner.sock",
    token_file: Annotated[
        Path | None, typer.Option(help="The shared secret. Default: the variable IHGRPO_RUNNER_TOKEN.")
    ] = None,
    image: Annotated[
        str, typer.Option(help="Image of the containers.", envvar="IHGRPO_SANDBOX_IMAGE")
    ] = "ih-grpo-sandbox:latest",
    runtime: Annotated[
        str | None, typer.Option(help="OCI runtime, as runsc.", envvar="IHGRPO_RUNNER_RUNTIME")
    ] = None,
    max_sessions: Annotated[
        int, typer.Option(help="Containers at once.", envvar="IHGRPO_RUNNER_MAX_SESSIONS")
    ] = 32,
    warm_containers: Annotated[
        int, typer.Option(help="Idle containers kept.", envvar="IHGRPO_RUNNER_WARM_CONTAINERS")
    ] = 4,
    max_run_limit_s: Annotated[
        float, typer.Option(help="Most seconds a flush may run.", envvar="IHGRPO_RUNNER_MAX_RUN_LIMIT_S")
    ] = 60.0,
    log_level: Annotated[str, typer.Option(envvar="IHGRPO_LOG_LEVEL")] = "info",
    log_format: Annotated[str, typer.Option(envvar="IHGRPO_LOG_FORMAT")] = "console",
) -> None:
    """Start the runner: the one process that holds the Docker socket."""
    from service.common import logs
    from service.sandbox.base import SandboxError
    from service.sandbox.docker.sandbox import DockerSandbox
    from service.sandbox.docker.settings import DockerSandboxSettings
    from service.sandbox.runner.server import serve_runner
    from service.sandbox.runner.settings import RunnerSettings, read_token

    logs.configure(log_level, "json" if log_format == "json" else "console")
    try:
        docker: dict[str, Any] = {
            "image": image,
            "runtime": runtime,
            "pool_size": min(warm_containers, max_sessions),
            # A container that is being removed still counts.
            "max_containers": 2 * max_sessions,
            "run_limit_ceiling_s": max_run_limit_s,
        }
        settings = RunnerSettings(
            token=read_token(token_file),
            bind=bind,
            max_sessions=max_sessions,
            max_run_limit_s=max_run_limit_s,
        )
        serve_runner(settings, DockerSandbox(DockerSandboxSettings(**docker)))
    except ValidationError as error:
        abort(*explain(error))
    except (ValueError, OSError, SandboxError) as error:
        abort(str(error))


@app.command()
def doctor(
    model: Annotated[str | None, typer.Option(help="Checkpoint directory or hub id.")] = None,
    sandbox: Annotated[
        str | None, typer.Option(help="runner or in-process. Default: as for `serve`.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Start no container to prove its walls.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Check this machine for what serving needs, and say what to do. Exit code 1: it can't serve."""
    from service.doctor import report
    from service.server.settings import Settings

    given = {"model": model, "sandbox": sandbox, "port": port}
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        abort(*explain(error))
    findings = list(report.examine(settings, quick=quick))
    if as_json:
        typer.echo(json.dumps(report.as_json(findings), indent=2))
    else:
        report.show(findings, Console())
    raise typer.Exit(1 if report.failed(findings) else 0)


sandbox_app = typer.Typer(help="The sandbox that code runs in.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(sandbox_app, name="sandbox")


@sandbox_app.callback()
def _sandbox() -> None:
    """The sandbox that code runs in."""


@sandbox_app.command("build")
def build_sandbox(
    image: Annotated[
        str, typer.Option(help="Tag of the image.", envvar="IHGRPO_SANDBOX_IMAGE")
    ] = "ih-grpo-sandbox:latest",
    base_image: Annotated[
        str | None,
        typer.Option(help="Image to build on. Default: python:3.12-slim.", envvar="IHGRPO_BASE_IMAGE"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build even if the image is up to date.")] = False,
) -> None:
    """Build the sandbox image from the files that come with this package, unless it is up to date."""
    from service.sandbox.base import SandboxError
    from service.sandbox.docker.image import build_image

    def report(line: str) -> None:
        _console.print(line, highlight=False, markup=False, overflow="ellipsis", no_wrap=True)

    try:
        built = build_image(image, base_image=base_image, force=force, report=report)
    except SandboxError as error:
        abort(str(error))
    _console.print(f"{image} is {'built' if built else 'up to date'}", highlight=False)


_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(add_help_option=False, context_settings=_PASS_ON)
def train(ctx: typer.Context) -> None:
    """Train and warm-start checkpoints (`ih-grpo train --help`)."""
    _trainer("trainer.cli.main", "ih-grpo train", ctx.args)


@app.command("eval", add_help_option=False, context_settings=_PASS_ON)
def evaluate(ctx: typer.Context) -> None:
    """Evaluate a checkpoint or a server on benchmarks (`ih-grpo eval --help`)."""
    _trainer("trainer.cli.evaluate", "ih-grpo eval", ctx.args)


@app.command(add_help_option=False, context_settings=_PASS_ON)
def show(ctx: typer.Context) -> None:
    """Look at the episodes of a training run's rollouts (`ih-grpo show --help`)."""
    _trainer("trainer.cli.show", "ih-grpo show", ctx.args)


def _trainer(module: str, name: str, args: list[str]) -> None:
    try:
        command = import_module(module).app
        command(args=args, prog_name=name)  # imports more, once it knows what is asked
    except ModuleNotFoundError as error:
        abort(
            f"{name} needs packages that are not installed ({error.name}): pip install 'ih-grpo[train]', "
            "in a checkout: make setup EXTRA=train"
        )
