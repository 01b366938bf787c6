"""Validation of the body of ``POST /v1/responses``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from service.api.files.choice import AutoContainer, ContainerChoice, Figures, OnExpired
from service.api.responses.items import Input
from service.api.sampling import enables_thinking
from service.api.tools.definitions import (
    Function,
    FunctionName,
    JsonObjectFormat,
    JsonSchema,
    SkippedTool,
    TextFormat,
)
from service.api.validation import (
    Ignored,
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

UNION_TAG = "<{}>"
"""Form of union tags, which distinguishes them from field names in error locations."""


class CodeInterpreterTool(RequestModel):
    """The tool that lets the model run code. Without it no code runs."""

    type: Literal["code_interpreter"]
    container: ContainerChoice = AutoContainer()
    """``auto`` for the container of the conversation or a new one, or the id of a container."""
    allowed_callers: Annotated[object, Ignored(["direct"])] = None

    def to_response(self) -> Json:
        """Return the value in the response object."""
        if isinstance(self.container, str):
            return {"type": self.type, "container": self.container}
        return {"type": self.type, "container": self.container.model_dump(exclude_none=True)}


class ResponseFunctionTool(Function):
    """A function that the client runs."""

    type: Literal["function"] = "function"
    defer_loading: Annotated[object, Ignored(False)] = None
    allowed_callers: Annotated[object, Ignored(["direct"])] = None
    output_schema: Annotated[object, Ignored()] = None

    def to_response(self) -> Json:
        """Return the value in the response object."""
        return self.model_dump(include={"type", "name", "description", "parameters", "strict"})


def by_type(value: object) -> str | None:
    """Return the tag of a union's member, made of its ``type``."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return UNION_TAG.format(kind)


Tool = Annotated[
    Annotated[CodeInterpreterTool, Tag("<code_interpreter>")]
    | Annotated[ResponseFunctionTool, Tag("<function>")]
    | Annotated[SkippedTool, Tag("<skipped>")],
    Discriminator(
        in_union(frozenset({"code_interpreter", "function"})),
        custom_error_type="unsupported_parameter",
        custom_error_message="this server supports tools of type 'code_interpreter' and 'function' only",
    ),
]


class FunctionChoice(Strict):
    """The model must call this function."""

    type: Literal["function"] = "function"
    name: FunctionName


def _choice_tag(value: object) -> str | None:
    return "<mode>" if isinstance(value, str) else by_type(value)


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<mode>")]
    | Annotated[FunctionChoice, Tag("<function>")],
    Discriminator(
        _choice_tag,
        custom_error_type="unsupported_parameter",
        custom_error_message="this server accepts 'none', 'auto', 'required' or a function by name",
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
    Discriminator(by_type),
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
LOGPROBS = "message.output_text.logprobs"
SEALED = "reasoning.encrypted_content"
INCLUDES = (OUTPUTS, LOGPROBS, SEALED)
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
    """Options for thinking. The model has no degrees of it."""

    effort: Annotated[str, Field(max_length=32)] | None = None
    """``none`` and ``minimal`` turn thinking off, any other value on."""
    summary: Annotated[object, Ignored("auto")] = None
    """``auto`` returns the thoughts themselves as the item's content."""
    generate_summary: Annotated[object, Ignored("auto")] = None


class CodeOptions(Strict):
    """Options for the code interpreter. Unset fields follow the checkpoint's policy."""

    eager: bool | None = None
    """Start a block in the background as soon as it is written; its output still waits for the marker."""
    max_turns: int | None = Field(default=None, ge=1)
    run_limit_s: float | None = Field(default=None, gt=0)
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Tokens of a flush's output that the model reads."""
    unflushed: Literal["drop", "run"] | None = None
    """Handling of blocks that are pending when the model ends its turn: ``drop`` never runs them; ``run``
    runs them and the model continues."""
    on_expired: OnExpired | None = None
    """Handling of a container id that has expired: ``error``, or ``fresh`` for a new container."""
    figures: Figures | None = None
    """Format of figures. Default: ``png``."""


class ResponseRequest(RequestBody):
    """OpenAI's fields, three sampling extras of vLLM, and ``deferral``."""

    model: str
    input: Input
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
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    text: TextOptions | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    strict_tool_calls: bool = False
    """Fail if the model writes an invalid call, instead of passing it on unchanged."""

    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
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
        if self.background and self.store is False:
            raise invalid("it requires 'store', so that clients can retrieve the response", ".background")
        if self.top_logprobs and LOGPROBS not in (self.include or ()):
            raise invalid(f"it requires 'include' to contain '{LOGPROBS}'", ".top_logprobs")
        if is_strict() and (
            other := [at for at, name in enumerate(self.include or ()) if name not in INCLUDES]
        ):
            raise unsupported("this server never creates it", f".include[{other[0]}]")
        return self

    def without_effect(self) -> Iterator[str]:
        if self.stream_options is not None and not self.stream:
            yield "stream_options"
        if self.max_tool_calls is not None and not self.runs_code:
            yield "max_tool_calls"
        has_form = self.form.to_response() != TextOptions().to_response()
        is_forced = self.tool_choice == "required" or isinstance(self.tool_choice, FunctionChoice)
        if self.thinks and (has_form or is_forced):
            yield "reasoning.effort"

    @property
    def thinks(self) -> bool:
        """Whether the model is asked to think first."""
        return self.reasoning is not None and enables_thinking(self.reasoning.effort) is True

    @property
    def stored(self) -> bool:
        return self.store is not False

    @property
    def form(self) -> TextOptions:
        """Form of the reply."""
        return self.text or TextOptions()

    @property
    def offered_tools(self) -> list[CodeInterpreterTool | ResponseFunctionTool]:
        """Tools of the types that this server supports."""
        return [tool for tool in self.tools or () if not isinstance(tool, SkippedTool)]

    @property
    def runs_code(self) -> bool:
        """Whether the model may run code: only if the request has the tool for it."""
        asked = any(isinstance(tool, CodeInterpreterTool) for tool in self.tools or ())
        return asked and self.tool_choice != "none"

    @property
    def code_tool(self) -> CodeInterpreterTool | None:
        """The tool that lets the model run code."""
        tools = (tool for tool in self.tools or () if isinstance(tool, CodeInterpreterTool))
        return next(tools, None)

    @property
    def functions(self) -> list[ResponseFunctionTool]:
        """The client's functions."""
        return [tool for tool in self.tools or () if isinstance(tool, ResponseFunctionTool)]
