"""MCP servers in requests: ``{"type": "mcp"}`` in ``tools``, with OpenAI's fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import Field, SecretStr, model_validator

from service.api.errors import ApiError
from service.api.validation import Ignored, RequestModel, Strict, invalid, only
from service.common.json import Json
from service.tools.client import ClientFunction
from service.tools.mcp.connection import McpServer
from service.tools.mcp.hub import McpHub, McpServerError, SessionTools

_FORBIDDEN_HEADERS: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer"}
)
ToolName = Annotated[str, Field(max_length=128)]
ToolNames = Annotated[list[ToolName], Field(max_length=256)]


class ToolFilter(Strict):
    """Tools by name."""

    tool_names: ToolNames | None = None
    read_only: Annotated[object, only()] = None


class ApprovalFilter(Strict):
    """The tools that need approval. A tool that is not in ``never`` needs it."""

    always: ToolFilter | None = None
    never: ToolFilter | None = None


class McpServerTool(RequestModel):
    """An MCP server whose tools code can call."""

    type: Literal["mcp"]
    server_label: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """Name of the server. Without ``server_url`` it names one that the operator configured."""
    server_url: str | None = Field(default=None, max_length=2048)
    server_description: Annotated[object, Ignored()] = None
    authorization: SecretStr | None = Field(default=None, max_length=16_384)
    """Access token, sent as ``Authorization: Bearer``. Neither logged nor stored."""
    headers: dict[str, SecretStr] | None = Field(default=None, max_length=32)
    """Headers to send. Neither logged nor stored."""
    allowed_tools: ToolNames | ToolFilter | None = None
    """Names of the tools to offer. Default: all."""
    read_only: bool | ToolNames = False
    """Tools without side effects, which may run before the flush: names, or true for all of them. What the
    server says about its tools is not trusted."""
    require_approval: Literal["always", "never"] | ApprovalFilter = "always"
    """Whether the client must approve each call: ``always``, ``never``, or names of tools."""
    connector_id: Annotated[object, only()] = None
    defer_loading: Annotated[object, Ignored(False)] = None
    allowed_callers: Annotated[object, Ignored(["programmatic"])] = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, value in (self.headers or {}).items():
            if name.lower() in _FORBIDDEN_HEADERS or not _is_token(name):
                raise invalid("this header can't be set", ".headers")
            if not is_header_value(value.get_secret_value()):
                raise invalid("a value is not a valid header", ".headers")
        if self.authorization is not None:
            if any(name.lower() == "authorization" for name in self.headers or ()):
                raise invalid("'headers' contains it as well", ".authorization")
            if not is_header_value(self.authorization.get_secret_value()):
                raise invalid("it is not a valid header", ".authorization")
        if self.server_url is None and (self.headers or self.authorization):
            raise invalid("credentials need a 'server_url'", ".server_url")
        return self

    @property
    def unapproved(self) -> frozenset[str] | bool:
        """Tools whose calls need no approval; True for all."""
        if isinstance(self.require_approval, str):
            return self.require_approval == "never"
        never, always = self.require_approval.never, self.require_approval.always
        names = frozenset((never.tool_names if never else None) or ())
        return names - frozenset((always.tool_names if always else None) or ())

    def server(self) -> McpServer:
        """Return the server to connect to."""
        headers = {name: value.get_secret_value() for name, value in (self.headers or {}).items()}
        if self.authorization is not None:
            headers["Authorization"] = f"Bearer {self.authorization.get_secret_value()}"
        allowed = (
            self.allowed_tools.tool_names
            if isinstance(self.allowed_tools, ToolFilter)
            else self.allowed_tools
        )
        return McpServer(
            self.server_label,
            url=self.server_url,
            headers=headers,
            allowed_tools=None if allowed is None else frozenset(allowed),
            read_only=self.read_only if isinstance(self.read_only, bool) else frozenset(self.read_only),
            unapproved=self.unapproved,
        )

    def as_request(self) -> Json:
        """Return the fields of the request, with credentials."""
        fields: Json = self.model_dump(exclude_none=True)
        if self.authorization is not None:
            fields["authorization"] = self.authorization.get_secret_value()
        if self.headers is not None:
            fields["headers"] = {name: value.get_secret_value() for name, value in self.headers.items()}
        return fields

    def to_response(self) -> Json:
        """Return the value in the response object, without credentials."""
        allowed = self.allowed_tools
        return {
            "type": "mcp",
            "server_label": self.server_label,
            "server_url": self.server_url,
            "headers": None,
            "allowed_tools": allowed.model_dump(exclude_none=True)
            if isinstance(allowed, ToolFilter)
            else allowed,
            "read_only": self.read_only,
            "require_approval": self.require_approval
            if isinstance(self.require_approval, str)
            else self.require_approval.model_dump(exclude_none=True),
        }


def _is_token(name: str) -> bool:
    return name.isascii() and name.replace("-", "").replace("_", "").isalnum()


def is_header_value(value: str) -> bool:
    """Return whether ``value`` can be the value of a header."""
    return value.isascii() and value.isprintable()


def check_labels(tools: Sequence[object]) -> None:
    """Raise an error if two MCP servers have the same label."""
    labels = [tool.server_label for tool in tools if isinstance(tool, McpServerTool)]
    if len(labels) != len(set(labels)):
        raise invalid("two MCP servers have the same 'server_label'", ".tools")


async def open_tools(
    hub: McpHub, tools: Sequence[McpServerTool], functions: Sequence[ClientFunction] = ()
) -> SessionTools | None:
    """Connect to the servers of a request and list their tools. None if there are no tools.

    Args:
        hub: of this process.
        tools: servers of the request.
        functions: functions of the client that code may call.

    Raises:
        ApiError: 400 for a server that is unknown or not allowed, 424 for one that can't be used.
    """
    try:
        return await hub.open([tool.server() for tool in tools], functions)
    except McpServerError as error:
        if error.refused:
            message = f"MCP server '{error.label}': {error}."
            raise ApiError(400, message, param="tools", code="invalid_value") from None
        message = f"Error retrieving tool list from MCP server: '{error.label}' {error}."
        raise ApiError(424, message, param="tools", code="mcp_server_error") from None
