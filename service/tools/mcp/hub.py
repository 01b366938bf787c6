"""The MCP servers of one process: those of the operator, and those that requests name."""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from service.tools.approval import Approvals
from service.tools.client import ClientCalls, ClientFunction
from service.tools.mcp.connection import McpConnection, McpError, McpServer, McpTool
from service.tools.mcp.egress import EgressError, EgressPolicy
from service.tools.stubs import identifier
from service.tools.toolset import CALL_TIMEOUT_S, Tool, ToolSet

MAX_SESSION_TOOLS: Final = 128
"""Highest number of tools of one request, over all servers."""
_OPERATOR_IDLE_S: Final = 600.0
APPROVAL_TIMEOUT_S: Final = 300.0


class McpServerError(Exception):
    """A server of a request can't be used."""

    def __init__(self, label: str, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.label = label
        self.refused = refused
        """The request is at fault: the server is unknown or not allowed."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The tools of one server that a request offers."""

    label: str
    tools: tuple[McpTool, ...]


class SessionTools(ToolSet):
    """The tools of one request, with the servers that they come from."""

    def __init__(
        self,
        tools: Sequence[Tool],
        listings: Sequence[Listing],
        origins: dict[str, tuple[str, str]],
        own: Sequence[McpConnection],
        *,
        timeout_s: float,
        client: ClientCalls | None = None,
        approval_timeout_s: float = APPROVAL_TIMEOUT_S,
    ) -> None:
        super().__init__(tools, timeout_s=timeout_s)
        self.approvals = Approvals(self.error_in, timeout_s=approval_timeout_s, clock=time.time)
        """Decisions about calls that need approval."""
        self.client = client or ClientCalls()
        """Calls of the functions that the client runs."""
        self.listings = tuple(listings)
        self.origins = origins
        """Label of the server and name of the tool there, by the name in Python."""
        self._own = tuple(own)

    async def close(self) -> None:
        """Close the connections that belong to the request. A later call would open a new one."""
        await asyncio.gather(*(connection.close() for connection in self._own))


class McpHub:
    """Opens the tools of requests.

    Args:
        configured: servers of the operator. A request names one by its label.
        always: labels of those that every request with code gets.
        policy: restricts the servers that requests name by URL.
        call_timeout_s: longest time of one call, in seconds.
        approval_timeout_s: time after which an undecided call is denied, in seconds.
    """

    def __init__(
        self,
        configured: Sequence[McpServer] = (),
        *,
        always: Sequence[str] = (),
        policy: EgressPolicy | None = None,
        call_timeout_s: float = CALL_TIMEOUT_S,
        approval_timeout_s: float = APPROVAL_TIMEOUT_S,
    ) -> None:
        self._approval_timeout_s = approval_timeout_s
        self._policy = policy or EgressPolicy()
        self._call_timeout_s = call_timeout_s
        self._configured = {
            server.label: McpConnection(server, None, idle_s=_OPERATOR_IDLE_S) for server in configured
        }
        self.always = tuple(always)

    async def open(
        self, servers: Sequence[McpServer], functions: Sequence[ClientFunction] = ()
    ) -> SessionTools | None:
        """Return the tools of ``servers``, and of those that every request gets; None if there are none.

        Args:
            servers: servers of the request. One without a URL is one of the operator's, of which it may
                restrict the tools.
            functions: functions of the client that code may call.

        Raises:
            McpServerError: a server is unknown, not allowed or unreachable.
        """
        named = {server.label for server in servers}
        wanted = [*servers, *(McpServer(label) for label in self.always if label not in named)]
        if not (wanted or functions):
            return None
        pairs = [(server, self._connection(server)) for server in wanted]
        own = [connection for server, connection in pairs if server.url is not None]
        listed = await asyncio.gather(
            *(self._list(server, connection) for server, connection in pairs), return_exceptions=True
        )
        errors = [result for result in listed if isinstance(result, BaseException)]
        if errors:
            await asyncio.gather(*(connection.close() for connection in own))
            raise errors[0]
        client = ClientCalls()
        tools: list[Tool] = [function.tool(client) for function in functions[:MAX_SESSION_TOOLS]]
        listings: list[Listing] = []
        origins: dict[str, tuple[str, str]] = {}
        for (server, connection), found in zip(pairs, listed, strict=True):
            assert not isinstance(found, BaseException)  # noqa: S101
            offered = found[: MAX_SESSION_TOOLS - len(tools)]
            for tool in offered:
                name = identifier(tool.name)
                if name in origins or name in client.names:
                    name = identifier(f"{server.label}_{tool.name}", {*origins, *client.names})
                origins[name] = server.label, tool.name
                is_read_only = server.is_read_only(tool.name) or (
                    server.url is None and connection.server.is_read_only(tool.name)
                )
                spec = tool.spec(
                    name, read_only=is_read_only, needs_approval=server.needs_approval(tool.name)
                )
                tools.append(Tool(spec, partial(_call, connection, tool)))
            listings.append(Listing(server.label, tuple(offered)))
        return SessionTools(
            tools,
            listings,
            origins,
            own,
            timeout_s=self._call_timeout_s,
            client=client,
            approval_timeout_s=self._approval_timeout_s,
        )

    def _connection(self, server: McpServer) -> McpConnection:
        if server.url is None:
            if server.label not in self._configured:
                raise McpServerError(
                    server.label,
                    f"this server has no MCP server {server.label!r}; give its 'server_url'",
                    refused=True,
                )
            return self._configured[server.label]
        try:
            self._policy.check_url(server.url)
        except EgressError as error:
            raise McpServerError(server.label, str(error), refused=True) from None
        return McpConnection(server, self._policy)

    @staticmethod
    async def _list(server: McpServer, connection: McpConnection) -> list[McpTool]:
        try:
            tools = await connection.list_tools()
        except McpError as error:
            raise McpServerError(server.label, str(error)) from None
        return [tool for tool in tools if server.offers(tool.name)]

    async def stop(self) -> None:
        """Close the connections to the operator's servers."""
        await asyncio.gather(*(connection.close() for connection in self._configured.values()))


async def _call(connection: McpConnection, tool: McpTool, arguments: dict[str, Any], call_id: str) -> object:
    del call_id
    return await connection.call(tool, arguments)


class _ConfiguredServer(BaseModel):
    """A server in the operator's file, in the form that MCP clients share."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    url: str | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    command: str | None = None
    args: list[str] = Field(default_factory=list)
    env: dict[str, str] = Field(default_factory=dict)
    type: str | None = None
    allowed_tools: list[str] | None = Field(default=None, alias="allowedTools")
    read_only: list[str] | bool = Field(default=False, alias="readOnly")
    always: bool = False

    def server(self, label: str) -> McpServer:
        if (self.url is None) == (self.command is None):
            raise ValueError(f"{label}: it needs either 'url' or 'command'")
        return McpServer(
            label,
            url=self.url,
            headers=self.headers,
            command=() if self.command is None else (*shlex.split(self.command), *self.args),
            env=self.env,
            allowed_tools=None if self.allowed_tools is None else frozenset(self.allowed_tools),
            read_only=self.read_only if isinstance(self.read_only, bool) else frozenset(self.read_only),
        )


class _ConfiguredServers(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    servers: dict[str, _ConfiguredServer] = Field(alias="mcpServers")


def read_servers(path: Path) -> tuple[list[McpServer], list[str]]:
    """Read the operator's servers from a JSON file ``{"mcpServers": {LABEL: {...}}}``.

    Returns:
        The servers, and the labels of those that every request gets.

    Raises:
        ValueError: the file can't be read or is invalid. The message contains none of its values.
    """
    form = TypeAdapter(_ConfiguredServers)
    try:
        content = form.validate_python(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: {where}: {first['msg']}") from None
    except ValueError:
        raise ValueError(f"{path}: it is not valid JSON") from None
    servers = [entry.server(label) for label, entry in content.servers.items()]
    return servers, [label for label, entry in content.servers.items() if entry.always]
