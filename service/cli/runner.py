"""``ih-grpo runner``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from pydantic import ValidationError

from service.cli.output import abort, explain

if TYPE_CHECKING:
    from service.sandbox.runner.settings import RunnerSettings

_POLL_S: Final = 1.0


def runner(
    bind: Annotated[
        str,
        typer.Option(
            help="Address to listen on: unix:/path/to.sock or host:port.", envvar="IHGRPO_RUNNER_BIND"
        ),
    ] = "unix:/run/ih-grpo/runner.sock",
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the shared secret. Default: the variable IHGRPO_RUNNER_TOKEN."),
    ] = None,
    image: Annotated[
        str, typer.Option(help="Container image.", envvar="IHGRPO_SANDBOX_IMAGE")
    ] = "ih-grpo-sandbox:latest",
    runtime: Annotated[
        str | None,
        typer.Option(help="OCI runtime, such as runsc (gVisor).", envvar="IHGRPO_RUNNER_RUNTIME"),
    ] = None,
    max_sessions: Annotated[
        int, typer.Option(help="Maximum number of concurrent sessions.", envvar="IHGRPO_RUNNER_MAX_SESSIONS")
    ] = 32,
    max_waiting: Annotated[
        int,
        typer.Option(
            help="Sessions that may wait for a container. Further ones fail immediately.",
            envvar="IHGRPO_RUNNER_MAX_WAITING",
        ),
    ] = 128,
    queue_timeout_s: Annotated[
        float,
        typer.Option(
            help="Seconds that a session waits for a container.", envvar="IHGRPO_RUNNER_QUEUE_TIMEOUT_S"
        ),
    ] = 30.0,
    warm_containers: Annotated[
        int, typer.Option(help="Idle containers to keep ready.", envvar="IHGRPO_RUNNER_WARM_CONTAINERS")
    ] = 4,
    max_run_limit_s: Annotated[
        float,
        typer.Option(
            help="Upper limit of a flush's run time in seconds.", envvar="IHGRPO_RUNNER_MAX_RUN_LIMIT_S"
        ),
    ] = 60.0,
    cgroup_root: Annotated[
        Path | None,
        typer.Option(
            help="Directory of the Docker daemon's cgroups, through which containers are frozen between two "
            "runs. Default: /sys/fs/cgroup.",
            envvar="IHGRPO_RUNNER_CGROUP_ROOT",
        ),
    ] = None,
    tls_cert_file: Annotated[
        Path | None,
        typer.Option(
            help="Certificate of the runner in PEM format. Enables TLS on host:port.",
            envvar="IHGRPO_RUNNER_TLS_CERT_FILE",
        ),
    ] = None,
    tls_key_file: Annotated[
        Path | None,
        typer.Option(help="Private key of the certificate.", envvar="IHGRPO_RUNNER_TLS_KEY_FILE"),
    ] = None,
    tls_client_ca_file: Annotated[
        Path | None,
        typer.Option(
            help="Certificate authorities. Clients must present a certificate of one of them.",
            envvar="IHGRPO_RUNNER_TLS_CLIENT_CA_FILE",
        ),
    ] = None,
    drain: Annotated[
        bool,
        typer.Option(
            "--drain",
            help="Start no runner. Tell the one at --bind to take no new sessions, and wait until the open "
            "ones have ended.",
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Start no runner. Tell the one at --bind to take sessions again after --drain."
        ),
    ] = False,
    max_tool_wait_s: Annotated[
        float,
        typer.Option(
            help="Upper limit of the time that a flush waits for tools, in seconds.",
            envvar="IHGRPO_RUNNER_MAX_TOOL_WAIT_S",
        ),
    ] = 300.0,
    log_level: Annotated[
        str, typer.Option(help="debug, info, warning or error.", envvar="IHGRPO_LOG_LEVEL")
    ] = "info",
    log_format: Annotated[str, typer.Option(help="console or json.", envvar="IHGRPO_LOG_FORMAT")] = "console",
) -> None:
    """Start the sandbox runner.

    The runner is the only process that holds the Docker socket. API servers send it code to run.

    \b
    Example:
      openssl rand -hex 32 > token
      ih-grpo runner --bind 127.0.0.1:7000 --token-file token
      ih-grpo serve --runner-url 127.0.0.1:7000 --runner-token-file token
      ih-grpo runner --drain --bind 127.0.0.1:7000 --token-file token
    """
    from service.common import logs
    from service.sandbox.base import SandboxError
    from service.sandbox.factory import SandboxOptions, create_sandbox
    from service.sandbox.runner.server import serve_runner
    from service.sandbox.runner.settings import RunnerSettings, read_token

    if drain and resume:
        abort("--drain and --resume exclude each other")
    logs.configure(log_level, "json" if log_format == "json" else "console")
    try:
        settings = RunnerSettings(
            token=read_token(token_file),
            bind=bind,
            max_sessions=max_sessions,
            max_waiting=max_waiting,
            max_connections=max(512, 2 * (max_sessions + max_waiting)),
            queue_timeout_s=queue_timeout_s,
            max_run_limit_s=max_run_limit_s,
            tls_certificate=tls_cert_file,
            tls_key=tls_key_file,
            tls_client_ca=tls_client_ca_file,
            max_tool_wait_s=max_tool_wait_s,
        )
        if drain or resume:
            _control(settings, drain=drain)
            return
        options = SandboxOptions(
            kind="in-process",
            image=image,
            runtime=runtime,
            cgroup_root=cgroup_root,
            pool_size=min(warm_containers, max_sessions),
            # A container that is being removed still counts.
            max_containers=2 * max_sessions,
            run_limit_s=max_run_limit_s,
        )
        serve_runner(settings, create_sandbox(options))
    except ValidationError as error:
        abort(*explain(error))
    except (ValueError, OSError, SandboxError) as error:
        abort(str(error))


def _control(settings: RunnerSettings, *, drain: bool) -> None:
    """Drain or resume a runner, and report its open sessions until none is left.

    Raises:
        SandboxError: the runner does not answer, or rejects the request.
    """
    from service.sandbox.runner.control import set_draining

    connections: int | None = None
    report = set_draining(settings, on=drain)
    if not drain:
        typer.echo(f"the runner at {settings.bind} takes sessions again")
        return
    try:
        while report.connections:
            if report.connections != connections:
                connections = report.connections
                typer.echo(f"the runner at {settings.bind} is draining: {connections} sessions are open")
            time.sleep(_POLL_S)
            report = set_draining(settings, on=True)
    except KeyboardInterrupt:
        typer.echo("stopped waiting; the runner continues to drain")
        raise typer.Exit(130) from None
    typer.echo(f"the runner at {settings.bind} is drained: no session is open, and it can be stopped")
