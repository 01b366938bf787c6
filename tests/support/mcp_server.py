"""An MCP server with a few tools. Run as a program, it serves them over stdio."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from mcp.server.mcpserver import MCPServer
from starlette.types import ASGIApp, Receive, Scope, Send


def make_server(log: list[str]) -> MCPServer:
    """Return a server that records its calls in ``log``."""
    server = MCPServer("test", log_level="CRITICAL")

    @server.tool()
    def add(a: int, b: int = 1) -> int:
        """Add two numbers."""
        log.append(f"add {a} {b}")
        return a + b

    @server.tool()
    def note(text: str) -> str:
        """Keep a note."""
        log.append(f"note {text}")
        return f"noted {text}"

    @server.tool(name="odd-name")
    def odd(values: list[int]) -> dict[str, int]:
        """Count."""
        return {"count": len(values)}

    @server.tool()
    async def slow(seconds: float) -> str:
        """Wait."""
        await asyncio.sleep(seconds)
        return "done"

    @server.tool(structured_output=False)
    def text(size: int) -> str:
        """Return a long text."""
        return "x" * size

    return server


@dataclass
class McpServed:
    """A running server."""

    url: str
    log: list[str]
    headers: list[dict[str, str]] = field(default_factory=list)
    """Headers of the requests so far."""

    @property
    def host(self) -> str:
        return self.url.split("/")[2]


@asynccontextmanager
async def serve_asgi(app: ASGIApp) -> AsyncGenerator[str]:
    """Serve ``app`` on a free loopback port; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="critical", log_config=None, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110  uvicorn has no event for it
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


@asynccontextmanager
async def serve_mcp() -> AsyncGenerator[McpServed]:
    """Serve the tools over streamable HTTP."""
    log: list[str] = []
    served = McpServed("", log)
    inner: Any = make_server(log).streamable_http_app()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            served.headers.append({k.decode(): v.decode() for k, v in scope["headers"]})
        await inner(scope, receive, send)

    async with serve_asgi(app) as address:
        served.url = f"{address}/mcp"
        yield served


if __name__ == "__main__":
    make_server([]).run("stdio")
