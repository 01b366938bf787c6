"""The ``ih-grpo`` command: one module per sub-command, each importing heavy packages only when it runs."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from service.cli import chat, doctor, keys, mcp, merge, runner, sandbox, serve, store
from service.cli.output import abort

app = typer.Typer(
    name="ih-grpo",
    help="""Serve, try and train models that decide when their code runs.

    \b
    Getting started:
      ih-grpo sandbox build         build the image that code runs in
      ih-grpo doctor                check this machine
      ih-grpo serve                 serve the demo model on http://127.0.0.1:8000
      ih-grpo chat                  talk to it
    """,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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


app.command("serve")(serve.serve)
app.command("chat")(chat.chat)
app.command("key", hidden=True)(keys.key)  # the name in version 0.1.0
app.command("runner")(runner.runner)
app.command("mcp")(mcp.mcp)
app.command("doctor")(doctor.doctor)
app.command("merge")(merge.merge)
app.add_typer(keys.app, name="keys")
app.add_typer(sandbox.app, name="sandbox")
app.add_typer(store.app, name="store")

_PASS_ARGUMENTS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(add_help_option=False, context_settings=_PASS_ARGUMENTS_ON)
def train(ctx: typer.Context) -> None:
    """Train a checkpoint."""
    _trainer("trainer.cli.main", "ih-grpo train", ctx.args)


@app.command("eval", add_help_option=False, context_settings=_PASS_ARGUMENTS_ON)
def evaluate(ctx: typer.Context) -> None:
    """Evaluate a checkpoint or a server."""
    if ctx.args[:1] in (["compare"], ["select"]):
        _trainer(f"trainer.cli.{ctx.args[0]}", f"ih-grpo eval {ctx.args[0]}", ctx.args[1:])
    else:
        _trainer("trainer.cli.evaluate", "ih-grpo eval", ctx.args)


@app.command(add_help_option=False, context_settings=_PASS_ARGUMENTS_ON)
def show(ctx: typer.Context) -> None:
    """Show episodes of a training run."""
    _trainer("trainer.cli.show", "ih-grpo show", ctx.args)


@app.command(add_help_option=False, context_settings=_PASS_ARGUMENTS_ON)
def runs(ctx: typer.Context) -> None:
    """List training runs and compare their curves."""
    _trainer("trainer.cli.runs", "ih-grpo runs", ctx.args)


def _trainer(module: str, name: str, args: list[str]) -> None:
    """Run a command of the trainer package."""
    try:
        command = import_module(module).app
        command(args=args, prog_name=name)  # imports the rest once it knows the sub-command
    except ModuleNotFoundError as error:
        abort(
            f"{name} needs packages that are not installed ({error.name}): pip install 'ih-grpo[train]', "
            "in a checkout: make setup EXTRA=train"
        )
