"""The sandbox as an MCP server, for other models and clients: ``ih-grpo mcp``.

Each namespace is a sandbox session with its own container, named by an id that can't be guessed. Blocks are
pending until they are flushed, as in the service itself, and run in the background meanwhile.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel, Field
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from service.sandbox.base import ExecutionResult, Sandbox, SandboxError, Session, SessionLimits

_INSTRUCTIONS = """\
Python in an isolated container without network, with numpy, sympy, scipy and pandas. Blocks share a \
namespace like the cells of a notebook. python_run runs a block and returns its output. python_invoke only \
adds a block; it runs in the background, and python_flush returns the output of all blocks since the last \
flush. So you can write several blocks without waiting. If a flush fails, none of its blocks has changed the \
namespace."""
_SWEEP_S = 15.0

Code = Annotated[str, Field(description="Python code. The value of its last expression is printed.")]
SessionId = Annotated[
    str | None,
    Field(description="Namespace from an earlier result. Omit it to start with an empty one.", max_length=64),
]


class PendingBlocks(BaseModel):
    """Result of adding a block."""

    session_id: str
    pending_blocks: int


class FlushOutput(BaseModel):
    """Result of a flush."""

    session_id: str
    status: Literal["ok", "error", "timeout", "oom", "output_limit", "sandbox_error"]
    stdout: str
    stderr: str
    wall_ms: float
    """Run time of the code."""
    waited_ms: float
    """The part of it that the caller waited for."""


@dataclass(slots=True)
class _Namespace:
    id: str
    session: Session
    pending: int = 0
    used_at: float = field(default_factory=time.monotonic)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Namespaces:
    """The sandbox sessions of all clients.

    Args:
        sandbox: runs the code.
        limits: limits of each session.
        idle_s: seconds without a call after which a session is closed.
        maximum: highest number of sessions.
    """

    def __init__(
        self, sandbox: Sandbox, limits: SessionLimits, *, idle_s: float = 600.0, maximum: int = 32
    ) -> None:
        self._sandbox = sandbox
        self._limits = limits
        self._idle_s = idle_s
        self._maximum = maximum
        self._open: dict[str, _Namespace] = {}
        self.starting: asyncio.Future[None] | None = None
        """Start of the sandbox, which the first calls wait for."""

    async def invoke(self, code: str, session_id: str | None) -> PendingBlocks:
        """Add a block to a namespace."""
        namespace = await self._find(session_id)
        async with namespace.lock:
            await self._add(namespace, code)
        return PendingBlocks(session_id=namespace.id, pending_blocks=namespace.pending)

    async def flush(self, session_id: str) -> FlushOutput:
        """Return the output of the pending blocks."""
        namespace = await self._find(session_id)
        async with namespace.lock:
            return await self._flush(namespace)

    async def run(self, code: str, session_id: str | None) -> FlushOutput:
        """Add a block and return the output of all pending blocks."""
        namespace = await self._find(session_id)
        async with namespace.lock:
            await self._add(namespace, code)
            return await self._flush(namespace)

    async def _find(self, session_id: str | None) -> _Namespace:
        if self.starting is not None:
            try:
                await asyncio.shield(self.starting)
            except SandboxError as error:
                raise ToolError(f"the sandbox did not start: {error}") from None
        if session_id is None:
            if len(self._open) >= self._maximum:
                raise ToolError(f"all {self._maximum} namespaces are in use; try again later")
            namespace = _Namespace(secrets.token_hex(16), self._sandbox.session(self._limits))
            self._open[namespace.id] = namespace
        elif (found := self._open.get(session_id)) is None:
            raise ToolError("this session_id is unknown, or its namespace has expired; omit it for a new one")
        else:
            namespace = found
        namespace.used_at = time.monotonic()
        return namespace

    async def _add(self, namespace: _Namespace, code: str) -> None:
        try:
            await namespace.session.invoke(code)
        except SandboxError as error:
            if not namespace.pending:
                await self._close(namespace)
            raise ToolError(f"the sandbox is not available: {error}") from None
        namespace.pending += 1

    async def _flush(self, namespace: _Namespace) -> FlushOutput:
        result: ExecutionResult = await namespace.session.flush()
        namespace.pending, namespace.used_at = 0, time.monotonic()
        return FlushOutput(
            session_id=namespace.id,
            status=result.status,
            stdout=result.stdout,
            stderr=result.stderr,
            wall_ms=round(result.wall_seconds * 1000, 3),
            waited_ms=round(result.waited_seconds * 1000, 3),
        )

    async def _close(self, namespace: _Namespace) -> None:
        self._open.pop(namespace.id, None)
        await namespace.session.close()

    async def sweep(self) -> None:
        """Close the sessions that were not used for a time, until cancelled."""
        while True:
            await asyncio.sleep(min(_SWEEP_S, self._idle_s))
            await self.close_unused(time.monotonic() - self._idle_s)

    async def close_unused(self, since: float) -> None:
        """Close the sessions without a call since ``since``, in monotonic time."""
        for namespace in tuple(self._open.values()):
            if namespace.used_at <= since and not namespace.lock.locked():
                await self._close(namespace)

    async def close(self) -> None:
        """Close all sessions."""
        for namespace in tuple(self._open.values()):
            await self._close(namespace)


def make_server(namespaces: Namespaces) -> MCPServer[Any]:
    """Return the MCP server. The caller starts and stops the sandbox, see `running`."""
    server: MCPServer[Any] = MCPServer("ih-grpo-sandbox", instructions=_INSTRUCTIONS, log_level="ERROR")

    @server.tool()
    async def python_run(code: Code, session_id: SessionId = None) -> FlushOutput:
        """Run Python and return its output, together with that of all pending blocks."""
        return await namespaces.run(code, session_id)

    @server.tool()
    async def python_invoke(code: Code, session_id: SessionId = None) -> PendingBlocks:
        """Add a block of Python that runs in the background. Its output waits for python_flush."""
        return await namespaces.invoke(code, session_id)

    @server.tool()
    async def python_flush(
        session_id: Annotated[str, Field(description="Namespace from an earlier result.", max_length=64)],
    ) -> FlushOutput:
        """Return the output of all blocks since the last flush, waiting for those that still run."""
        return await namespaces.flush(session_id)

    return server


@asynccontextmanager
async def running(
    sandbox: Sandbox, namespaces: Namespaces, *, in_background: bool = False
) -> AsyncIterator[None]:
    """Start the sandbox, and stop it at the end with all sessions.

    Args:
        sandbox: runs the code.
        namespaces: its sessions.
        in_background: do not wait for the start, which may take longer than a client waits for the server.
            If it fails, every call reports it.

    Raises:
        SandboxError: the sandbox did not start.
    """
    namespaces.starting = asyncio.ensure_future(sandbox.start())
    sweeping = asyncio.create_task(namespaces.sweep())
    try:
        if not in_background:
            await namespaces.starting
        yield
    finally:
        sweeping.cancel()
        namespaces.starting.cancel()
        await asyncio.gather(sweeping, namespaces.starting, return_exceptions=True)
        await namespaces.close()
        await sandbox.stop()


class RequireToken:
    """Middleware that rejects requests without the bearer token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                rejection = PlainTextResponse("wrong or missing token", 401, {"WWW-Authenticate": "Bearer"})
                await rejection(scope, receive, send)
                return
        await self._app(scope, receive, send)
