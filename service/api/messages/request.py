"""Validation of the bodies of ``POST /v1/messages`` and ``POST /v1/messages/count_tokens``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from service.api import sibling_fields
from service.api.messages.blocks import CODE_EXECUTION, DIRECT, InputMessage, NoEffectOption, check_results
from service.api.sampling import Stops, TopP
from service.api.tools.definitions import CodeOptions, ContainerId, SkippedTool, WithArguments
from service.api.tools.mcp import McpServerTool, ToolNames, is_header_value
from service.api.tools.mcp import ToolName as McpToolName
from service.api.validation import (
    Ignored,
    OptionalContent,
    RequestBody,
    RequestModel,
    Strict,
    invalid,
    is_strict,
    only,
    unsupported,
)
from service.common.json import compile_schema

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
Callers = Annotated[
    list[Annotated[str, Field(pattern=r"^(direct|code_execution_\d{8})$")]] | None,
    Field(min_length=1, max_length=16),
]
_CALLERS: Final = ("code_execution_20250825", "code_execution_20260120")
"""The callers that official clients know in replies."""


class CodeExecutionTool(RequestModel):
    """The server tool that lets the model run code. Without it no code runs. All versions are the same."""

    type: Annotated[str, Field(pattern=r"^code_execution(_\d{8})?$")]
    name: Literal["code_execution"] = "code_execution"
    allowed_callers: Annotated[object, Ignored([DIRECT])] = None
    cache_control: NoEffectOption = None
    defer_loading: Annotated[object, Ignored(False)] = None
    strict: Annotated[object, Ignored(False)] = None


class ClientTool(WithArguments):
    """A tool that the client runs."""

    type: Literal["custom"] | None = None
    name: ToolName
    description: str | None = None
    input_schema: dict[str, object]
    """JSON schema of the input."""
    strict: Annotated[object, Ignored(True, False)] = None
    """No effect. The input of a call is checked against ``input_schema`` if ``tool_choice`` forces it, or if
    code calls the tool."""
    allowed_callers: Callers = None
    """``direct``: the model calls the tool (default). ``code_execution_20250825`` or a later version: code
    calls it, after ``from tools import NAME``."""
    cache_control: NoEffectOption = None
    defer_loading: Annotated[object, Ignored(False)] = None
    eager_input_streaming: Annotated[object, Ignored(False)] = None
    input_examples: Annotated[object, Ignored([])] = None

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        self._compiled(self.input_schema, "not", ".input_schema", for_code=self.code_caller is not None)
        return self

    @property
    def is_direct(self) -> bool:
        """Whether the model may call it."""
        return self.allowed_callers is None or DIRECT in self.allowed_callers

    @property
    def code_caller(self) -> str | None:
        """Name of the caller in calls that code makes; None if code may not call it."""
        versions = [name for name in self.allowed_callers or () if name != DIRECT]
        if not versions:
            return None
        return next((name for name in _CALLERS if name in versions), _CALLERS[-1])


class ToolOptions(RequestModel):
    """Options of one tool of an MCP server, or the defaults of all."""

    enabled: bool | None = None
    defer_loading: Annotated[object, Ignored(False)] = None


class McpToolset(RequestModel):
    """The tools of an entry of ``mcp_servers`` that code can call."""

    type: Literal["mcp_toolset"]
    mcp_server_name: str = Field(max_length=64)
    default_config: ToolOptions = ToolOptions()
    configs: dict[McpToolName, ToolOptions] = Field(default_factory=dict, max_length=256)
    cache_control: NoEffectOption = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.default_config.enabled is not False:
            for name, options in self.configs.items():
                if options.enabled is False:
                    raise unsupported(
                        "turn all tools off in 'default_config' and those to offer on",
                        f".configs.{name}.enabled",
                    )
        return self

    @property
    def allowed_tools(self) -> list[str] | None:
        """Names of the tools; None for all."""
        if self.default_config.enabled is not False:
            return None
        return [name for name, options in self.configs.items() if options.enabled]


class ToolConfiguration(RequestModel):
    """Earlier form of `McpToolset`, as a part of the server's entry."""

    enabled: bool = True
    allowed_tools: ToolNames | None = None


class MessagesMcpServer(RequestModel):
    """An MCP server whose tools code can call."""

    type: Literal["url"] = "url"
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    url: str = Field(max_length=2048)
    authorization_token: SecretStr | None = Field(default=None, max_length=16_384)
    """Access token for the server. Neither logged nor stored."""
    tool_configuration: ToolConfiguration | None = None

    @field_validator("authorization_token")
    @classmethod
    def _check_token(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and not is_header_value(token.get_secret_value()):
            raise invalid("it is not a valid header")
        return token

    def as_tool(self, toolset: McpToolset | None) -> McpServerTool | None:
        """Return the server as OpenAI's tool; None if its tools are turned off."""
        own = self.tool_configuration or ToolConfiguration()
        if not own.enabled:
            return None
        return McpServerTool(
            type="mcp",
            server_label=self.name,
            server_url=self.url,
            authorization=self.authorization_token,
            allowed_tools=own.allowed_tools if toolset is None else toolset.allowed_tools,
            require_approval="never",
        )


class ContainerOptions(Strict):
    """A container of an earlier reply."""

    id: ContainerId | None = None
    skills: Annotated[object, only([])] = None


def _as_container(value: object) -> object:
    return {"id": value} if isinstance(value, str) else value


def _tool_tag(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    if isinstance(value, SkippedTool):
        return "<skipped>"
    if kind in (None, "custom"):
        return "<custom>"
    if not isinstance(kind, str) or kind == "function":
        return None  # a tool of another API
    if kind.startswith(CODE_EXECUTION):
        return "<code_execution>"
    if kind == "mcp_toolset":
        return "<mcp_toolset>"
    return None if is_strict() else "<skipped>"


MessagesTool = Annotated[
    Annotated[ClientTool, Tag("<custom>")]
    | Annotated[CodeExecutionTool, Tag("<code_execution>")]
    | Annotated[McpToolset, Tag("<mcp_toolset>")]
    | Annotated[SkippedTool, Tag("<skipped>")],
    Discriminator(
        _tool_tag,
        custom_error_type="unsupported_parameter",
        custom_error_message="a tool has 'name' and 'input_schema', or the type 'code_execution_20250522'",
    ),
]


class MessagesToolChoice(Strict):
    """The client's choice between tools."""

    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if self.type == "tool" and self.name is None:
            raise invalid("a choice of type 'tool' needs the tool's name", ".name")
        return self


class ThinkingOptions(RequestModel):
    """``adaptive`` counts as ``enabled``, and ``between_tools`` as ``disabled``."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = Field(default=None, ge=1, le=2**31)
    """Most tokens of the thought, which are part of ``max_tokens``. At the limit the server closes it."""
    display: Literal["summarized", "omitted"] | None = None
    """``omitted``: a thinking block has a signature, but no text."""


class OutputFormat(RequestModel):
    """Form of the reply: JSON of a schema."""

    type: Literal["json_schema"]
    schema_: dict[str, object] = Field(alias="schema")

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        try:
            compile_schema(self.schema_)
        except ValueError as error:
            raise invalid(f"not a usable JSON schema: {error}", ".schema") from None
        return self


class OutputConfig(RequestModel):
    """Options for the reply."""

    effort: str | None = Field(default=None, max_length=32)
    """With thinking on and without a budget, ``low`` and ``medium`` limit the thought to 1024 and 8192
    tokens."""
    format: OutputFormat | None = None
    task_budget: NoEffectOption = None


class MessagesMetadata(RequestModel):
    user_id: str | None = None


def _reject_thread(value: object) -> object:
    """Reject threads with the code that makes the official clients send whole conversations instead."""
    if value is not None:
        message = "this server keeps no conversations: send all messages instead"
        context = {"message": message, "at": "", "code": "thread_unsupported_request"}
        raise PydanticCustomError("unsupported_parameter", "{message}", context)
    return value


class CountTokensRequest(RequestBody):
    """The fields that determine the prompt."""

    sibling_fields: ClassVar = sibling_fields.MESSAGES

    thread: Annotated[object, AfterValidator(_reject_thread)] = None
    model: str
    messages: Annotated[list[InputMessage], Field(min_length=1), AfterValidator(check_results)]
    system: OptionalContent = None
    tools: list[MessagesTool] | None = Field(default=None, max_length=128)
    tool_choice: MessagesToolChoice | None = None
    thinking: ThinkingOptions | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    """Earlier name of ``output_config.format``."""
    deferral: CodeOptions | None = None

    cache_control: NoEffectOption = None
    container: Annotated[
        ContainerOptions | None, BeforeValidator(_as_container, json_schema_input_type=str | ContainerOptions)
    ] = None
    """The container of an earlier reply, or its id, to continue with its variables and files. Default: a new
    one."""
    mcp_servers: list[MessagesMcpServer] | None = Field(default=None, max_length=20)
    """Servers whose tools code can call with ``from tools import``. Ignored without ``code_execution``."""
    billing_policy: NoEffectOption = None
    compaction: Annotated[object, only()] = None
    context_management: NoEffectOption = None
    speed: Annotated[object, Ignored("standard")] = None
    betas: NoEffectOption = None
    user_profile_id: NoEffectOption = None

    @model_validator(mode="after")
    def _check_tools(self) -> Self:
        names = [tool.name for tool in self.client_tools]
        if len(names) != len(set(names)):
            raise invalid("two tools have the same name", ".tools")
        servers = [server.name for server in self.mcp_servers or ()]
        if len(servers) != len(set(servers)):
            raise invalid("two servers have the same name", ".mcp_servers")
        for index, tool in enumerate(self.tools or ()):
            if isinstance(tool, McpToolset) and tool.mcp_server_name not in servers:
                raise invalid(
                    f"'mcp_servers' contains no server {tool.mcp_server_name!r}",
                    f".tools[{index}].mcp_server_name",
                )
        if not self.runs_code and self.container_id is not None:
            raise unsupported("'tools' contains no usable code_execution that could run in it", ".container")
        if self.deferral is not None and not self.runs_code:
            raise unsupported(
                "it configures code execution, but 'tools' contains no usable code_execution", ".deferral"
            )
        choice = self.tool_choice
        if choice is None or choice.type != "none":
            self._check_callers()
        if choice is None or choice.type in ("auto", "none"):
            return self
        names = [tool.name for tool in self.client_tools if tool.is_direct]
        if choice.name == CODE_EXECUTION or (choice.type == "any" and not names and self.runs_code):
            raise unsupported("the model decides when code runs, so a run can't be required", ".tool_choice")
        if choice.type == "any" and not names:
            raise invalid("'tools' contains no tool to call", ".tool_choice")
        if choice.type == "tool" and choice.name not in names:
            raise invalid(f"'tools' contains no tool {choice.name!r} for the model", ".tool_choice.name")
        for index, tool in enumerate(self.tools or ()):
            if not isinstance(tool, ClientTool) or choice.name not in (None, tool.name):
                continue
            if tool.is_direct:
                tool.check_enforceable(f".tools[{index}].input_schema")
        return self

    def _check_callers(self) -> None:
        for index, tool in enumerate(self.tools or ()):
            if isinstance(tool, ClientTool) and not (tool.is_direct or self.runs_code):
                raise invalid(
                    "'tools' contains no code_execution that could call it",
                    f".tools[{index}].allowed_callers",
                )

    def without_effect(self) -> Iterator[str]:
        if self.effort is not None and not self.thinks:
            yield "output_config.effort"
        if self.deferral is not None and self.deferral.live_output:
            yield "deferral.live_output"
        if self.mcp_servers and not self.runs_code:
            yield "mcp_servers"
        for index, tool in enumerate(self.tools or ()):
            if isinstance(tool, ClientTool) and tool.code_caller is not None and not self.runs_code:
                yield f"tools[{index}].allowed_callers"

    @property
    def effort(self) -> str | None:
        """The effort that the client asks for."""
        return None if self.output_config is None else self.output_config.effort

    @property
    def client_tools(self) -> list[ClientTool]:
        """The tools that the client runs."""
        return [tool for tool in self.tools or () if isinstance(tool, ClientTool)]

    @property
    def mcp_tools(self) -> list[McpServerTool]:
        """The MCP servers whose tools code can call."""
        if not self.runs_code:
            return []
        toolsets = {tool.mcp_server_name: tool for tool in self.tools or () if isinstance(tool, McpToolset)}
        tools = [server.as_tool(toolsets.get(server.name)) for server in self.mcp_servers or ()]
        return [tool for tool in tools if tool is not None]

    @property
    def container_id(self) -> str | None:
        """The container to continue in."""
        return None if self.container is None else self.container.id

    @property
    def runs_code(self) -> bool:
        """Whether the model may run code: only if the request has the tool for it."""
        is_off = self.tool_choice is not None and self.tool_choice.type == "none"
        return not is_off and any(isinstance(tool, CodeExecutionTool) for tool in self.tools or ())

    @property
    def thinks(self) -> bool:
        """Whether the model is asked to think first."""
        return self.thinking is not None and self.thinking.type in ("enabled", "adaptive")

    @property
    def format(self) -> OutputFormat | None:
        """Form of the reply; None for free text."""
        asked = None if self.output_config is None else self.output_config.format
        return asked or self.output_format


class MessagesRequest(CountTokensRequest):
    """Anthropic's fields, four sampling extras of vLLM, and ``deferral``."""

    max_tokens: int = Field(ge=1)
    """Limit on the tokens that the model samples in the whole reply, without outputs of code."""
    stream: bool | None = None
    stop_sequences: Stops | None = None
    """Strings that end the reply; they are not returned. Pending code then never runs."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: TopP | None = None
    top_k: int | None = Field(default=None, ge=-1)
    metadata: MessagesMetadata | None = None

    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    n: Annotated[object, only(1)] = None

    diagnostics: NoEffectOption = None
    fallback_credit_token: NoEffectOption = None
    fallbacks: NoEffectOption = None
    inference_geo: NoEffectOption = None
    service_tier: Annotated[object, Ignored("auto", "standard_only")] = None
    workspace_id: NoEffectOption = None
