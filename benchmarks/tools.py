"""Cost of calling a tool from code, and the share of slow calls that deferred execution hides.

    DOCKER_HOST=unix:///... python benchmarks/tools.py

The first table is the round trip of one call, measured by the code itself: to a function in this process,
and to local MCP servers of the official SDK in separate processes. The second part serves a scripted model
that calls a read-only tool in a block, keeps writing for a while, and then asks for the output. Prints the
tables of docs/reference/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.scripted import two_blocks, warm_container, warm_sandbox
from service.engines.base import Sampling
from service.episode.events import ExecutedTool, FlushFinished
from service.sandbox.base import Sandbox, SessionLimits
from service.tools.base import ToolHost, ToolSpec
from service.tools.mcp.connection import McpConnection, McpServer
from service.tools.mcp.hub import McpHub
from service.tools.toolset import Tool, ToolSet

SERVER = """
import asyncio, sys
from mcp.server.mcpserver import MCPServer
server = MCPServer("benchmark", log_level="ERROR")
@server.tool()
async def probe(delay_ms: float) -> float:
    '''Wait and return the delay.'''
    await asyncio.sleep(delay_ms / 1000)
    return delay_ms
if sys.argv[1] == "stdio":
    server.run("stdio")
else:
    server.run("streamable-http", port=int(sys.argv[1]))
"""
TIMED = """
import json, time
from tools import probe
probe(0)
times = []
for _ in range({calls}):
    began = time.perf_counter()
    probe(0)
    times.append((time.perf_counter() - began) * 1000)
print(json.dumps([round(t, 3) for t in times]))
"""
PAUSE = "The next step does not need the value yet. " * 200


def local_tools() -> ToolSet:
    """The tool as a function in this process."""

    async def probe(arguments: dict[str, Any], _call_id: str) -> object:
        await asyncio.sleep(arguments["delay_ms"] / 1000)
        return arguments["delay_ms"]

    number = {"type": "number"}
    schema = {"type": "object", "properties": {"delay_ms": number}, "required": ["delay_ms"]}
    return ToolSet([Tool(ToolSpec("probe", "Wait.", schema, number, read_only=True), probe)])


@asynccontextmanager
async def http_server() -> AsyncIterator[McpServer]:
    """A local MCP server over streamable HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stderr=subprocess.DEVNULL)  # noqa: ASYNC220
    server = McpServer("http", f"http://127.0.0.1:{port}/mcp", read_only=True)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            await asyncio.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait()


def quantiles(times: list[float]) -> tuple[str, str]:
    ordered = sorted(times)
    return f"{statistics.median(ordered):.1f}", f"{ordered[int(0.95 * (len(ordered) - 1))]:.1f}"


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    print(f"\n| {' | '.join([title, *head])} |")
    print(f"| {' | '.join(['---'] * (len(head) + 1))} |")
    for row in rows:
        print(f"| {' | '.join(row)} |")


async def from_code(sandbox: Sandbox, tools: ToolHost, calls: int) -> list[float]:
    """Milliseconds of each of ``calls`` calls, measured by the code."""
    limits = SessionLimits(run_limit_s=60.0, eager=False, tool_calls=calls + 1)
    session = sandbox.session(limits, tools)
    try:
        await session.invoke(TIMED.format(calls=calls))
        result = await session.flush()
        if result.status != "ok":
            raise SystemExit(f"the code failed: {result.status} {result.stderr}")
        times: list[float] = json.loads(result.stdout)
        return times
    finally:
        await session.close()


async def directly(call: Callable[[], Awaitable[object]], calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        await call()
        times.append((time.perf_counter() - began) * 1000)
    return times


async def episode(sandbox: Sandbox, tools: ToolHost, delay_ms: int, writes_s: float) -> ExecutedTool:
    """One episode of a model that calls the tool, keeps writing for ``writes_s`` and asks for the output."""
    block = f"from tools import probe\nx = probe({delay_ms})"
    runner = two_blocks(sandbox, block, PAUSE, "print(x)", writes_s)
    started = runner.start(runner.engine.tokenizer.encode("question", allow_special=False))
    async for event in runner.run(started, Sampling(max_tokens=5000), episode_id="benchmark", tools=tools):
        if isinstance(event, FlushFinished):
            return event.tool
    raise SystemExit("the episode had no flush")


async def main(options: argparse.Namespace) -> None:
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores")
    async with warm_sandbox() as sandbox, http_server() as http:
        stdio = McpServer("stdio", command=(sys.executable, "-c", SERVER, "stdio"), read_only=True)
        hub = McpHub([stdio, http])
        over = {label: await hub.open([McpServer(label)]) for label in ("http", "stdio")}
        rows: list[list[str]] = []
        for label, tools in {"a function in the server": local_tools(), **over}.items():
            if tools is None:
                raise SystemExit(f"{label} has no tools")
            name = label if tools.specs and label.startswith("a ") else f"an MCP server over {label}"
            rows.append([name, *quantiles(await from_code(sandbox, tools, options.calls))])
            if not label.startswith("a "):
                connection = McpConnection(stdio if label == "stdio" else http, None)
                [tool] = await connection.list_tools()

                async def call(connection: McpConnection = connection, tool: Any = tool) -> object:
                    return await connection.call(tool, {"delay_ms": 0})

                rows.append([f"{name}, without a sandbox", *quantiles(await directly(call, options.calls))])
                await connection.close()
        table("round trip of a call, ms", ["p50", "p95"], rows)

        tools = over["http"]
        if tools is None:
            raise SystemExit("no tools")
        rows = []
        for delay_ms in options.delays:
            writes_s = options.writes_on * delay_ms / 1000 + 0.5
            shares, waits = [], []
            for _ in range(options.episodes):
                await warm_container(sandbox)
                flush = await episode(sandbox, tools, delay_ms, writes_s)
                if flush.status != "ok" or len(flush.calls) != 1:
                    raise SystemExit(f"the flush failed: {flush}")
                shares.append(flush.hidden_ms / flush.wall_ms)
                waits.append(flush.waited_ms)
            sequential = await directly(
                lambda delay_ms=delay_ms: tools.call("probe", {"delay_ms": delay_ms}, "call"),  # type: ignore[misc]
                options.episodes,
            )
            rows.append(
                [
                    f"{delay_ms} ms",
                    f"{statistics.median(shares):.2f}",
                    f"{statistics.median(waits):.0f}",
                    f"{statistics.median(sequential):.0f}",
                ]
            )
        head = ["hidden share", "wait of the model, deferred, ms", "wait of an ordinary call, ms"]
        table("a tool that takes", head, rows)
        await hub.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=200, help="timed calls per variant")
    parser.add_argument("--episodes", type=int, default=5, help="episodes per delay")
    parser.add_argument("--delays", type=int, nargs="+", default=[50, 200, 500, 1000, 2000], metavar="MS")
    parser.add_argument(
        "--writes-on", type=float, default=1.2, help="writing time as a multiple of the delay"
    )
    asyncio.run(main(parser.parse_args()))
