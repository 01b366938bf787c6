"""Validation of the bodies of ``POST /v1/responses`` and ``POST /v1/responses/input_tokens``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from service.api import sibling_fields
from service.api.responses.items import Input
from service.api.sampling import TokenBudget, TopP, enables_thinking
from service.api.structured_outputs import StructuredOutputs
from service.api.tools.custom import CustomFields
from service.api.tools.definitions import (
    ALLOWED_TYPES,
    FORMAT_TYPES,
    AllowedCode,
    AllowedServer,
    CodeInterpreterTool,
    CodeOptions,
    Function,
    FunctionName,
    JsonObjectFormat,
    JsonSchema,
    ProgrammaticTool,
    SkippedTool,
    TextFormat,
    by_type,
    check_enforceable,
    choice_tag,
)
from service.api.tools.mcp import McpServerTool, check_labels
from service.api.validation import (
    Ignored,
    Label,
    Lenient,
    RequestBody,
    RequestModel,
    Strict,
    in_union,
    invalid,
    is_strict,
    only,
    unsupported,
)
from service.common.json import Json
from service.tools.client import ClientFunction

_NESTED = "the Responses API has the fields of a tool beside its 'type', not in this object"


def _reject_nested(data: object) -> object:
    """Reject the form of chat completions with a hint."""
    if isinstance(data, dict) and "name" not in data:
        for name in ("function", "custom"):
            if isinstance(data.get(name), dict):
                raise invalid(_NESTED, f".{name}")
    return data


class ResponseFunctionTool(Function):
    """A function that the client runs."""

    type: Literal["function"] = "function"
    defer_loading: Annotated[object, Ignored(False)] = None

    @model_validator(mode="before")
    @classmethod
    def _is_flat(cls, data: object) -> object:
        return _reject_nested(data)

    def to_response(self) -> Json:
        """Return the value in the response object."""
        shown = {"type", "name", "description", "parameters", "strict"}
        extra = {name for name in ("allowed_callers", "output_schema") if getattr(self, name) is not None}
        return self.model_dump(include=shown | extra)


class ResponseCustomTool(CustomFields):
    """A tool that takes free text."""

    name: FunctionName
    type: Literal["custom"] = "custom"

    @model_validator(mode="before")
    @classmethod
    def _is_flat(cls, data: object) -> object:
        return _reject_nested(data)

    def to_response(self) -> Json:
        """Return the value in the response object."""
        return self.model_dump(include={"type", "name", "description", "format"}, exclude_none=True)


Tool = Annotated[
    Annotated[CodeInterpreterTool, Tag("<code_interpreter>")]
    | Annotated[ResponseFunctionTool, Tag("<function>")]
    | Annotated[ResponseCustomTool, Tag("<custom>")]
    | Annotated[McpServerTool, Tag("<mcp>")]
    | Annotated[ProgrammaticTool, Tag("<programmatic_tool_calling>")]
    | Annotated[SkippedTool, Tag("<skipped>")],
    Discriminator(
        in_union(frozenset({"code_interpreter", "function", "custom", "mcp", "programmatic_tool_calling"})),
        custom_error_type="unsupported_parameter",
        custom_error_message=(
            "this server supports the tools 'code_interpreter', 'function', 'custom' and 'mcp' only"
        ),
    ),
]


class FunctionChoice(Strict):
    """The model must call this function or custom tool."""

    type: Literal["function", "custom"] = "function"
    name: FunctionName

    @model_validator(mode="before")
    @classmethod
    def _is_flat(cls, data: object) -> object:
        return _reject_nested(data)


AllowedTool = Annotated[
    Annotated[FunctionChoice, Tag("<function>")]
    | Annotated[AllowedCode, Tag("<code_interpreter>")]
    | Annotated[AllowedServer, Tag("<mcp>")],
    Discriminator(
        choice_tag,
        custom_error_type="unsupported_parameter",
        custom_error_message=ALLOWED_TYPES,
    ),
]


class ResponseAllowedTools(Strict):
    """The model may use only these tools of the request. ``required``: it must call one of the functions."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"] = "auto"
    tools: list[AllowedTool] = Field(max_length=129)


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<mode>")]
    | Annotated[FunctionChoice, Tag("<function>")]
    | Annotated[ResponseAllowedTools, Tag("<allowed_tools>")],
    Discriminator(
        choice_tag,
        custom_error_type="unsupported_parameter",
        custom_error_message=(
            "this server accepts 'none', 'auto', 'required', a function by name, or 'allowed_tools'"
        ),
    ),
]
Tools = Annotated[list[Tool], Field(max_length=128)]


class SchemaFormat(JsonSchema):
    """JSON of a schema. Unlike in chat completions, the schema is beside the type."""

    type: Literal["json_schema"]


Format = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JsonObjectFormat, Tag("<json_object>")]
    | Annotated[SchemaFormat, Tag("<json_schema>")],
    Discriminator(by_type, custom_error_type="invalid_value", custom_error_message=FORMAT_TYPES),
]


class TextOptions(RequestModel):
    format: Format = Field(default=TextFormat(type="text"))
    verbosity: Annotated[object, Ignored("medium")] = None

    def as_response_format(self) -> Json:
        """Return the format in the form of chat completions."""
        if not isinstance(self.format, SchemaFormat):
            return self.format.model_dump(exclude_none=True, by_alias=True)
        schema = self.format.model_dump(exclude={"type"}, exclude_none=True, by_alias=True)
        return {"type": "json_schema", "json_schema": schema}

    def to_response(self) -> Json:
        """Return the value in the response object."""
        return {"format": self.format.model_dump(exclude_none=True, by_alias=True)}


OUTPUTS = "code_interpreter_call.outputs"
EXECUTION = "code_interpreter_call.execution"
"""Blocks, times, files and calls of tools of a run, as in ``executed_tools`` of chat completions."""
LOGPROBS = "message.output_text.logprobs"
SEALED = "reasoning.encrypted_content"
INCLUDES = (OUTPUTS, EXECUTION, LOGPROBS, SEALED)
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Unsupported = Annotated[object, only()]
NoEffect = Annotated[object, Ignored()]


class IncludeNames(Lenient):
    """Report names of values that this server never creates; they have no effect."""

    def ignored_in(self, raw: object) -> Iterator[str]:
        for index, name in enumerate(raw if isinstance(raw, list) else ()):
            if name not in INCLUDES:
                yield f"[{index}]"


class ResponseStreamOptions(RequestModel):
    include_obfuscation: Annotated[object, Ignored(False)] = None


class ReasoningOptions(RequestModel):
    """Options for thinking."""

    effort: Annotated[str, Field(max_length=32)] | None = None
    """``none`` and ``minimal`` turn thinking off, any other value on. ``low`` and ``medium`` limit it to 1024
    and 8192 tokens."""
    max_tokens: TokenBudget | None = None
    """Most tokens of the thought: 0 for none, -1 for no limit. At the limit the server closes the thought."""
    summary: Annotated[object, Ignored("auto")] = None
    """``auto`` returns the thoughts themselves as the item's content."""
    generate_summary: Annotated[object, Ignored("auto")] = None


class ResponseRequest(RequestBody):
    """OpenAI's fields, extras of vLLM, and ``deferral``."""

    sibling_fields: ClassVar = sibling_fields.RESPONSES

    model: str
    input: Input = Field(default=[])
    """May be empty or left out with ``previous_response_id``, whose conversation then continues as it is."""
    instructions: str | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    include: Annotated[list[str] | None, Field(max_length=64), IncludeNames()] = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Limit on the tokens that the model samples in the whole response, without observations."""
    max_tool_calls: int | None = Field(default=None, ge=1)
    """Maximum number of flushes. If the model requests more, the response is incomplete."""
    metadata: dict[MetadataKey, MetadataValue] | None = Field(default=None, max_length=16)
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: TopP | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    text: TextOptions | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    strict_tool_calls: bool = False
    """Fail if the model writes an invalid call, instead of passing it on unchanged."""

    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    structured_outputs: StructuredOutputs | None = None
    """vLLM's constraints on the reply, such as ``{"regex": "[0-9]{4}"}``."""
    deferral: CodeOptions | None = None

    access_programs: NoEffect = None
    background_options: NoEffect = None
    context_management: Annotated[object, Ignored([])] = None
    conversation: Unsupported = None
    image: Unsupported = None
    moderation: Unsupported = None
    prompt: Unsupported = None
    prompt_cache_options: NoEffect = None
    prompt_cache_retention: NoEffect = None
    service_tier: Annotated[object, Ignored("auto", "default")] = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        if not self.input and self.previous_response_id is None:
            raise invalid("it is required and may not be empty without 'previous_response_id'", ".input")
        if self.background and self.store is False:
            raise invalid("it requires 'store', so that clients can retrieve the response", ".background")
        check_labels(self.tools or ())
        if self.top_logprobs and LOGPROBS not in (self.include or ()):
            raise invalid(f"it requires 'include' to contain '{LOGPROBS}'", ".top_logprobs")
        self._check_schemas()
        if is_strict() and (
            other := [at for at, name in enumerate(self.include or ()) if name not in INCLUDES]
        ):
            raise unsupported("this server never creates it", f".include[{other[0]}]")
        return self

    def _check_schemas(self) -> None:
        """Raise if the arguments of a call must match a schema that can't be enforced."""
        if not (self.strict_tool_calls or self.forces_call):
            return
        choice = self.tool_choice
        check_enforceable(
            (
                (f".tools[{index}].parameters", tool)
                for index, tool in enumerate(self.tools or ())
                if isinstance(tool, ResponseFunctionTool)
            ),
            (tool.name for tool in self.callable_functions),
            choice.name if isinstance(choice, FunctionChoice) else None,
        )

    def without_effect(self) -> Iterator[str]:
        if self.stream_options is not None and not self.stream:
            yield "stream_options"
        if self.max_tool_calls is not None and not self.runs_code:
            yield "max_tool_calls"
        if self.thinks and self.forces_call:
            yield "reasoning.effort"

    @property
    def thinks(self) -> bool:
        """Whether the model is asked to think first."""
        options = self.reasoning
        if options is None or options.max_tokens == 0:
            return False
        return enables_thinking(options.effort) is True

    @property
    def stored(self) -> bool:
        return self.store is not False

    @property
    def form(self) -> TextOptions:
        """Form of the reply."""
        return self.text or TextOptions()

    @property
    def offered_tools(
        self,
    ) -> list[
        CodeInterpreterTool | ResponseFunctionTool | ResponseCustomTool | McpServerTool | ProgrammaticTool
    ]:
        """Tools of the types that this server supports."""
        return [tool for tool in self.tools or () if not isinstance(tool, SkippedTool)]

    @property
    def offers_code(self) -> bool:
        """Whether the request has the tool for running code."""
        return any(isinstance(tool, CodeInterpreterTool | ProgrammaticTool) for tool in self.tools or ())

    @property
    def runs_code(self) -> bool:
        """Whether the model may run code: only if the request has the tool for it, or tools for code."""
        if self.mcp_tools or self.code_functions:
            return True
        choice = self.tool_choice
        if isinstance(choice, ResponseAllowedTools) and not any(
            isinstance(tool, AllowedCode) for tool in choice.tools
        ):
            return False
        return self.offers_code and choice != "none"

    @property
    def mcp_tools(self) -> list[McpServerTool]:
        """MCP servers whose tools code may call."""
        choice = self.tool_choice
        if choice == "none":
            return []
        found = [tool for tool in self.tools or () if isinstance(tool, McpServerTool)]
        if not isinstance(choice, ResponseAllowedTools):
            return found
        labels = {tool.server_label for tool in choice.tools if isinstance(tool, AllowedServer)}
        return [tool for tool in found if tool.server_label in labels]

    @property
    def code_tool(self) -> CodeInterpreterTool | None:
        """The tool that lets the model run code."""
        tools = (tool for tool in self.tools or () if isinstance(tool, CodeInterpreterTool))
        return next(tools, None)

    @property
    def functions(self) -> list[ResponseFunctionTool | ResponseCustomTool]:
        """The client's functions and custom tools."""
        return [
            tool for tool in self.tools or () if isinstance(tool, ResponseFunctionTool | ResponseCustomTool)
        ]

    @property
    def custom_names(self) -> frozenset[str]:
        """Names of the tools that take free text."""
        return frozenset(tool.name for tool in self.functions if isinstance(tool, ResponseCustomTool))

    @property
    def callable_functions(self) -> list[ResponseFunctionTool | ResponseCustomTool]:
        """The functions that the model may call in this response."""
        return [
            tool for tool in self.allowed_functions if isinstance(tool, ResponseCustomTool) or tool.is_direct
        ]

    @property
    def code_functions(self) -> list[ClientFunction]:
        """The functions that code in this response may call."""
        found = (tool.for_code for tool in self.allowed_functions if isinstance(tool, ResponseFunctionTool))
        return [function for function in found if function is not None]

    @property
    def allowed_functions(self) -> list[ResponseFunctionTool | ResponseCustomTool]:
        """The functions that ``tool_choice`` allows."""
        choice = self.tool_choice
        if choice == "none":
            return []
        if not isinstance(choice, ResponseAllowedTools):
            return self.functions
        names = {tool.name for tool in choice.tools if isinstance(tool, FunctionChoice)}
        return [tool for tool in self.functions if tool.name in names]

    @property
    def forces_call(self) -> bool:
        """Whether the response must be a call of a function."""
        choice = self.tool_choice
        mode = choice.mode if isinstance(choice, ResponseAllowedTools) else choice
        return mode == "required" or isinstance(mode, FunctionChoice)


class InputTokensRequest(ResponseRequest):
    """The body of ``POST /v1/responses/input_tokens``: a request whose prompt is counted."""

    model: str = ""
    """Default: the served model."""
