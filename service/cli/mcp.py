"""``ih-grpo mcp``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.cli.output import abort

if TYPE_CHECKING:
    from service.sandbox.base import Sandbox
    from service.server.sandbox_mcp import Namespaces


def mcp(
    transport: Annotated[str, typer.Option(help="stdio, or http for streamable HTTP.")] = "stdio",
    host: Annotated[str, typer.Option(help="Address to listen on (http).")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on (http).")] = 8100,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with a bearer token that clients must send (http). Required unless the host is "
            "loopback."
        ),
    ] = None,
    sandbox: Annotated[
        str, typer.Option(help="'in-process', containers; 'runner'; or 'process', bubblewrap.")
    ] = "in-process",
    runner_url: Annotated[
        str, typer.Option(help="Address of the runner: unix:/path/to.sock or host:port; several with commas.")
    ] = "unix:/run/ih-grpo/runner.sock",
    runner_token_file: Annotated[
        Path | None, typer.Option(help="File with the secret shared with the runner.")
    ] = None,
    sandbox_image: Annotated[
        str, typer.Option(help="Container image (in-process).", envvar="IHGRPO_SANDBOX_IMAGE")
    ] = "ih-grpo-sandbox:latest",
    run_limit_s: Annotated[float, typer.Option(help="Run time of a flush in seconds.")] = 60.0,
    idle_s: Annotated[float, typer.Option(help="Seconds after which an unused namespace is closed.")] = 600.0,
    max_sessions: Annotated[int, typer.Option(help="Maximum number of namespaces.")] = 16,
    warm_containers: Annotated[int, typer.Option(help="Idle containers to keep ready.")] = 1,
) -> None:
    """Serve the sandbox to MCP clients, with deferred execution.

    The tools are python_run, python_invoke and python_flush. Code runs in containers without network.

    \b
    Examples:
      ih-grpo mcp
      ih-grpo mcp --transport http --port 8100
    """
    from service.common import logs
    from service.sandbox.base import SandboxError, SessionLimits
    from service.sandbox.factory import SandboxOptions, create_sandbox, instance_name
    from service.server.sandbox_mcp import Namespaces
    from service.server.settings import is_loopback

    logs.configure("warning", "console")
    if transport not in ("stdio", "http"):
        abort(f"--transport: {transport!r} is neither stdio nor http")
    if sandbox not in ("in-process", "runner", "process"):
        abort(f"--sandbox: {sandbox!r} is not in-process, runner or process")
    token = _read_token(token_file)
    if transport == "http" and token is None and not is_loopback(host):
        abort(f"host {host!r} is reachable from other machines: give a --token-file")
    kind: Literal["in-process", "runner", "process"] = sandbox  # type: ignore[assignment]
    try:
        box = create_sandbox(
            SandboxOptions(
                kind=kind,
                pool_size=warm_containers,
                max_containers=max_sessions + 2,
                run_limit_s=run_limit_s,
                image=sandbox_image,
                instance=instance_name("mcp"),
                runner_addresses=tuple(filter(None, map(str.strip, runner_url.split(",")))),
                runner_token_file=runner_token_file,
            )
        )
        namespaces = Namespaces(
            box, SessionLimits(run_limit_s=run_limit_s), idle_s=idle_s, maximum=max_sessions
        )
        if transport == "stdio":
            asyncio.run(_serve_stdio(box, namespaces))
        else:
            asyncio.run(_serve_http(box, namespaces, host, port, token))
    except (ValueError, OSError, SandboxError) as error:
        abort(str(error))


def _read_token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        abort(f"--token-file {path}: {error.strerror}")
    if len(token) < 16:
        abort(f"--token-file {path}: the token must have at least 16 characters")
    return token


async def _serve_stdio(sandbox: Sandbox, namespaces: Namespaces) -> None:
    from service.server.sandbox_mcp import make_server, running

    async with running(sandbox, namespaces, in_background=True):
        await make_server(namespaces).run_stdio_async()


async def _serve_http(
    sandbox: Sandbox, namespaces: Namespaces, host: str, port: int, token: str | None
) -> None:
    import uvicorn
    from starlette.types import ASGIApp

    from service.server.sandbox_mcp import RequireToken, make_server, running

    app: ASGIApp = make_server(namespaces).streamable_http_app(host=host)
    if token is not None:
        app = RequireToken(app, token)
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False)
    async with running(sandbox, namespaces):
        await uvicorn.Server(config).serve()
