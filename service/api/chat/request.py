"""The body of ``POST /v1/chat/completions``, checked. A field that can't be honoured is refused by name."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from service.api.chat.messages import Messages
from service.api.functions.declared import FunctionTool, NamedChoice, ToolChoice
from service.api.functions.response_format import ResponseFormat
from service.api.strict import Strict, invalid, only

MAX_STOPS = 16

Unsupported = Annotated[object, only()]
StopString = Annotated[str, Field(min_length=1, max_length=256)]
Stops = Annotated[
    list[StopString],
    Field(max_length=MAX_STOPS),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: Annotated[object, only(False)] = None


class ChatTemplateKwargs(Strict):
    """What a client may tell the chat template."""

    enable_thinking: bool = False


class DeferralOptions(Strict):
    """How code of this request is run. Unset: the checkpoint's own policy."""

    enabled: bool | None = None
    """False: plain generation; the marker is a token like any other and no code runs. Unset: true, save for
    a request with ``tools`` of its own or a JSON ``response_format``, in which no code can be written."""
    eager: bool | None = None
    """Start a block in the background as soon as it is written; its output still waits for the marker.
    Unset: true."""
    max_turns: int | None = Field(default=None, ge=1)
    run_limit_s: float | None = Field(default=None, gt=0)
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Tokens of a flush's output that the model reads."""
    unflushed: Literal["drop", "run"] | None = None
    """What happens to blocks that are pending when the model ends its turn: they never run, or the server
    runs them and the model continues."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        names = ("eager", "max_turns", "run_limit_s", "max_output_tokens", "unflushed")
        given = [name for name in names if getattr(self, name) is not None]
        if self.enabled is False and given:
            raise invalid(f"'{given[0]}' says how code is run, and 'enabled' is false")
        return self


class ChatRequest(Strict):
    """OpenAI's fields, the sampling extras of vLLM, and ``deferral``."""

    model: str
    messages: Messages
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    """0 and -1: no limit."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """Tokens that the model may sample in the whole episode; observations are not counted."""
    stop: Stops | None = None
    """Text of the model that ends the reply; it is not shown. Code that is pending then never runs."""
    n: int | None = Field(default=None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=2)
    logit_bias: dict[TokenId, Bias] | None = Field(default=None, max_length=1024)
    response_format: ResponseFormat | None = None
    tools: list[FunctionTool] | None = Field(default=None, max_length=128)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    chat_template_kwargs: ChatTemplateKwargs = ChatTemplateKwargs()
    deferral: DeferralOptions = DeferralOptions()

    reasoning_effort: Annotated[object, only("none")] = None
    functions: Annotated[object, only([])] = None
    function_call: Annotated[object, only("none")] = None
    modalities: Annotated[object, only(["text"])] = None
    audio: Unsupported = None
    prediction: Unsupported = None
    verbosity: Unsupported = None
    web_search_options: Unsupported = None
    store: Annotated[object, only(False)] = None
    service_tier: Annotated[object, only("auto", "default")] = None
    prompt_cache_retention: Unsupported = None
    moderation: Unsupported = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("'top_logprobs' needs 'logprobs' to be true")
        if self.stream_options is not None and not self.stream:
            raise invalid("'stream_options' needs 'stream' to be true")
        names = [tool.function.name for tool in self.tools or ()]
        if len(names) != len(set(names)):
            raise invalid("two functions in 'tools' have one name")
        if self.tool_choice not in (None, "none") and not names:
            raise invalid("'tool_choice' needs 'tools'")
        if isinstance(self.tool_choice, NamedChoice) and self.tool_choice.function.name not in names:
            raise invalid(f"'tool_choice' names {self.tool_choice.function.name!r}, which is not in 'tools'")
        return self

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def token_limit(self) -> int | None:
        """Bound on sampled tokens, if the client gave one."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def callable_tools(self) -> list[FunctionTool]:
        """The functions that this reply may call."""
        return [] if self.tool_choice == "none" else list(self.tools or ())

    @property
    def json_schema(self) -> str | None:
        """JSON schema of the whole reply, as text, if the client gave one."""
        return None if self.response_format is None else self.response_format.schema_text

    @property
    def deferred(self) -> bool:
        """Whether code runs: unless switched off, in every request that leaves room for it."""
        if self.deferral.enabled is not None:
            return self.deferral.enabled
        return not self.tools and self.json_schema is None

    @property
    def conflict(self) -> tuple[Literal["deferral", "response_format", "tool_choice"], str] | None:
        """A field that can't be honoured beside another one, and why; None if there is none."""
        forced = self.tool_choice == "required" or isinstance(self.tool_choice, NamedChoice)
        thinking = self.chat_template_kwargs.enable_thinking
        options = self.deferral.model_dump(exclude_none=True)
        if options and self.deferral.enabled is not False and (self.tools or self.json_schema):
            return "deferral", "no code runs in a request with 'tools' or a JSON 'response_format'"
        if self.json_schema and self.callable_tools:
            return "response_format", "JSON replies and 'tools' can't be joined"
        if self.json_schema and thinking:
            return "response_format", "a reply of JSON alone can't be joined with 'enable_thinking'"
        if forced and thinking:
            return "tool_choice", "a call that must be made can't be joined with 'enable_thinking'"
        return None
