"""Connections to MCP servers: list the tools, call them, close when idle.

The official SDK speaks the protocol: streamable HTTP, and stdio for servers that the operator configured. A
server is not trusted. Sizes and times are bounded, its schemas are compiled offline, and its annotations
(``readOnlyHint``) decide nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import httpx2
import structlog
from mcp import Client, MCPError, StdioServerParameters, types
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from service.common.json import compile_schema
from service.tools.base import MAX_RESULT_BYTES, ToolError, ToolSpec
from service.tools.mcp.egress import BoundedTransport, CheckedTransport, EgressError, EgressPolicy

_log = structlog.get_logger(__name__)

MAX_TOOLS: Final = 128
"""Highest number of tools of one server."""
MAX_SCHEMA_BYTES: Final = 1 << 15
"""Largest schema of a tool, in bytes of JSON. A tool with a larger one is left out."""
_MAX_PAGES: Final = 10
_MAX_NAME_CHARS: Final = 128
_CLOSE_TIMEOUT_S: Final = 5.0


class McpError(Exception):
    """An MCP server can't be used. The message contains no credentials."""


@dataclass(frozen=True, slots=True)
class McpServer:
    """One MCP server."""

    label: str
    """Name of the server in the API."""
    url: str | None = None
    """Address of a server over streamable HTTP."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Headers to send, which may hold credentials. Never logged or stored."""
    command: tuple[str, ...] = ()
    """Command of a server over stdio; only the operator can configure one."""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Environment of the command, beside a few variables such as ``PATH``."""
    allowed_tools: frozenset[str] | None = None
    """Names of the tools to offer; None for all."""
    read_only: frozenset[str] | bool = False
    """Names of the tools without side effects; True for all of them."""
    unapproved: frozenset[str] | bool = True
    """Names of the tools whose calls need no approval; True for all of them."""

    def offers(self, name: str) -> bool:
        return self.allowed_tools is None or name in self.allowed_tools

    def needs_approval(self, name: str) -> bool:
        return self.unapproved is not True and (self.unapproved is False or name not in self.unapproved)

    def is_read_only(self, name: str) -> bool:
        return self.read_only is True or (self.read_only is not False and name in self.read_only)


@dataclass(frozen=True, slots=True)
class McpTool:
    """A tool as its server lists it."""

    name: str
    description: str
    input_schema: dict[str, Any]
    output_schema: dict[str, Any] | None
    annotations: dict[str, Any] | None

    def spec(self, name: str, *, read_only: bool, needs_approval: bool = False) -> ToolSpec:
        """Return the tool's specification under the Python name ``name``."""
        return ToolSpec(
            name,
            self.description,
            self.input_schema,
            self.result_schema,
            read_only,
            needs_approval=needs_approval,
        )

    @property
    def result_schema(self) -> dict[str, Any] | None:
        """JSON schema of the value that code gets; None for text."""
        if self.output_schema is None or not self._is_wrapped:
            return self.output_schema
        value = self.output_schema["properties"]["result"]
        # References in it are relative to the whole schema.
        definitions: dict[str, Any] = {
            key: self.output_schema[key] for key in ("$defs", "definitions") if key in self.output_schema
        }
        return {**value, **definitions} if isinstance(value, dict) else {}

    @property
    def _is_wrapped(self) -> bool:
        """Whether the result is an object with the only property ``result``, as SDKs wrap other values."""
        properties = (self.output_schema or {}).get("properties")
        required = (self.output_schema or {}).get("required")
        return isinstance(properties, dict) and list(properties) == ["result"] and required == ["result"]

    def value(self, structured: object) -> object:
        """Return the value for code of a structured result."""
        if self._is_wrapped and isinstance(structured, dict) and list(structured) == ["result"]:
            return structured["result"]
        return structured


class Connection(Protocol):
    """The part of the SDK's client that is used."""

    async def list_tools(self, *, cursor: str | None = None) -> types.ListToolsResult: ...
    async def call_tool(self, name: str, arguments: dict[str, Any] | None = None) -> types.CallToolResult: ...


class McpConnection:
    """A connection to one server, opened on first use and closed after a time without calls.

    Args:
        server: the server.
        policy: restricts the addresses; None for a server of the operator.
        idle_s: seconds after which an unused connection is closed. The next call opens a new one.
        connect_timeout_s: longest time to connect and list the tools, in seconds.
    """

    def __init__(
        self,
        server: McpServer,
        policy: EgressPolicy | None,
        *,
        idle_s: float = 60.0,
        connect_timeout_s: float = 15.0,
    ) -> None:
        self.server = server
        self._policy = policy
        self._idle_s = idle_s
        self._connect_timeout_s = connect_timeout_s
        self._task: asyncio.Task[None] | None = None
        self._client: asyncio.Future[Client] | None = None
        self._in_use = 0
        self._changed = asyncio.Event()
        self._closing = False
        self._lock = asyncio.Lock()

    async def list_tools(self) -> list[McpTool]:
        """Return the server's tools that are offered.

        Raises:
            McpError: the server is unreachable, not allowed, or breaks the protocol.
        """
        try:
            async with asyncio.timeout(self._connect_timeout_s), self._connected() as client:
                return await _listed(client, self.server)
        except TimeoutError:
            raise McpError(f"did not answer within {self._connect_timeout_s:g} seconds") from None
        except (MCPError, OSError, RuntimeError, ValueError, httpx2.HTTPError, EgressError) as error:
            raise McpError(_reason(error)) from None

    async def call(self, tool: McpTool, arguments: dict[str, Any]) -> object:
        """Call a tool and return the value for code: the structured result, or its text.

        Raises:
            ToolError: the tool failed, or the server did.
        """
        try:
            async with self._connected() as client:
                result = await client.call_tool(tool.name, arguments)
        except McpError as error:
            raise ToolError(f"the MCP server {self.server.label!r} {error}") from None
        except (MCPError, OSError, RuntimeError, ValueError, httpx2.HTTPError, EgressError) as error:
            raise ToolError(_reason(error)) from None
        text = _text_of(result.content)
        if result.is_error:
            raise ToolError(text or "the tool failed without a message")
        if tool.output_schema is not None and result.structured_content is not None:
            return tool.value(result.structured_content)
        if tool.output_schema is not None:
            raise ToolError("the tool returned no structured result, although it has a schema for it")
        return text

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Client]:
        """Yield the client, connecting if necessary."""
        self._in_use += 1
        self._changed.set()
        try:
            async with self._lock:
                if self._task is None or self._task.done():
                    self._closing = False
                    self._client = asyncio.get_running_loop().create_future()
                    self._task = asyncio.create_task(self._run(self._client))
                client = self._client
            assert client is not None  # noqa: S101
            yield await asyncio.shield(client)
        finally:
            self._in_use -= 1
            self._changed.set()

    async def _run(self, ready: asyncio.Future[Client]) -> None:
        """Hold the connection open: the SDK's context belongs to one task."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                client = await stack.enter_async_context(self._open(stack))
                ready.set_result(client)
                await self._wait_until_unused()
        except asyncio.CancelledError:
            if not ready.done():
                ready.set_exception(McpError("was closed"))
                ready.exception()
            raise
        except BaseException as error:  # the SDK raises groups of its tasks' errors
            if not ready.done():
                ready.set_exception(McpError(_reason(error)))
                ready.exception()  # retrieved, in case no call waits for it
            else:
                _log.info("mcp_connection_lost", server=self.server.label, error=_reason(error))

    def _open(self, stack: contextlib.AsyncExitStack) -> contextlib.AbstractAsyncContextManager[Client]:
        @contextlib.asynccontextmanager
        async def opened() -> AsyncIterator[Client]:
            if self.server.command:
                transport = stdio_client(
                    StdioServerParameters(
                        command=self.server.command[0],
                        args=list(self.server.command[1:]),
                        env=dict(self.server.env) or None,
                    ),
                    errlog=stack.enter_context(Path(os.devnull).open("w")),  # noqa: ASYNC230, SIM115
                )
            else:
                assert self.server.url is not None  # noqa: S101
                http = await stack.enter_async_context(self._http_client())
                transport = streamable_http_client(self.server.url, http_client=http)
            async with Client(transport, cache=None) as client:
                # The SDK would match patterns of the server with Python's regular expressions.
                client.session.validate_tool_result = _skip_validation  # type: ignore[method-assign]
                yield client

        return opened()

    def _http_client(self) -> httpx2.AsyncClient:
        transport = BoundedTransport() if self._policy is None else CheckedTransport(self._policy)
        return httpx2.AsyncClient(
            transport=transport,
            headers=dict(self.server.headers),
            timeout=httpx2.Timeout(self._connect_timeout_s, read=300.0),
            trust_env=False,
        )

    async def _wait_until_unused(self) -> None:
        while not self._closing:
            self._changed.clear()
            if self._in_use:
                await self._changed.wait()
                continue
            try:
                async with asyncio.timeout(self._idle_s):
                    await self._changed.wait()
            except TimeoutError:
                return

    async def close(self) -> None:
        """Close the connection. A later call opens a new one."""
        task, self._closing = self._task, True
        self._changed.set()
        if task is None or task.done():
            return
        await asyncio.wait([task], timeout=_CLOSE_TIMEOUT_S)
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_CLOSE_TIMEOUT_S)


async def _skip_validation(name: str, result: types.CallToolResult) -> None: ...


async def _listed(client: Connection, server: McpServer) -> list[McpTool]:
    tools: list[McpTool] = []
    cursor: str | None = None
    for _ in range(_MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        offered = [tool for tool in page.tools if server.offers(tool.name)][: MAX_TOOLS - len(tools)]
        tools += [usable for tool in offered if (usable := _usable(tool, server.label)) is not None]
        cursor = page.next_cursor
        if cursor is None or len(tools) >= MAX_TOOLS:
            break
    return tools


def _usable(tool: types.Tool, label: str) -> McpTool | None:
    """Return the tool, or None if its name or schemas can't be used."""
    try:
        for schema in (tool.input_schema, tool.output_schema):
            if schema is not None:
                if len(json.dumps(schema)) > MAX_SCHEMA_BYTES:
                    raise ValueError("its schema is too large")
                compile_schema(schema)
        if not 0 < len(tool.name) <= _MAX_NAME_CHARS:
            raise ValueError("its name is too long")
        usable = McpTool(
            tool.name,
            tool.description or "",
            tool.input_schema,
            tool.output_schema,
            None
            if tool.annotations is None
            else tool.annotations.model_dump(exclude_none=True, by_alias=True),
        )
        if usable.result_schema is not None:
            compile_schema(usable.result_schema)
    except (ValueError, RecursionError) as error:
        _log.warning(
            "mcp_tool_left_out", server=label, tool=tool.name[:_MAX_NAME_CHARS], error=str(error)[:200]
        )
        return None
    return usable


def _text_of(content: Collection[types.ContentBlock]) -> str:
    """Return the text of a result. Other content is named."""
    parts: list[str] = []
    size = 0
    for block in content:
        if isinstance(block, types.TextContent):
            part = block.text
        elif isinstance(block, types.EmbeddedResource) and isinstance(
            block.resource, types.TextResourceContents
        ):
            part = block.resource.text
        else:
            part = f"[{block.type}]"
        size += len(part)
        if size > MAX_RESULT_BYTES:
            raise ToolError(f"the result is larger than {MAX_RESULT_BYTES} bytes")
        parts.append(part)
    return "\n".join(parts)


def _reason(error: BaseException) -> str:
    """Return a short description of an error of the SDK, without URLs and headers."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    if isinstance(error, McpError | EgressError):
        return str(error)
    if isinstance(error, MCPError):
        return error.error.message[:500]
    if isinstance(error, FileNotFoundError):
        return "its command was not found"
    if isinstance(error, httpx2.TimeoutException):
        return "timed out"
    if isinstance(error, httpx2.HTTPError | OSError):
        return f"can't be reached ({type(error).__name__})"
    return f"failed ({type(error).__name__})"
