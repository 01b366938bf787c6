"""The body of ``POST /v1/chat/completions``, checked. A field that can't be honoured is refused by name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _only(*neutral: object) -> AfterValidator:
    """Refuse a known OpenAI field, save the values that ask for nothing (None among them)."""

    def check(value: object) -> None:
        if value is not None and value not in neutral:
            raise PydanticCustomError("unsupported_parameter", "this server does not support it yet")

    return AfterValidator(check)


Unsupported = Annotated[object, _only()]


def _join_parts(value: object) -> object:
    """Text parts as one string; a list stays what it is where it holds anything else, and is refused."""
    if not isinstance(value, list):
        return value
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise PydanticCustomError(
                "unsupported_parameter", "content is a string, or parts of type 'text' with their text"
            )
    return "".join(part["text"] for part in value)


Content = Annotated[str, BeforeValidator(_join_parts, json_schema_input_type=str | list[dict[str, str]])]


class Message(_Strict):
    """One turn. What a reply has beside its content is accepted when it is sent back, and left out."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = None
    name: Unsupported = None
    refusal: Unsupported = None
    audio: Unsupported = None
    annotations: Annotated[object, _only([])] = None
    tool_calls: Annotated[object, _only([])] = None
    function_call: Unsupported = None
    executed_tools: list[dict[str, object]] | None = None

    @model_validator(mode="after")
    def _has_content(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise PydanticCustomError("invalid_value", "only an assistant's message may lack content")
        return self


class StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: Annotated[object, _only(False)] = None


class ChatTemplateKwargs(_Strict):
    """What a client may tell the chat template."""

    enable_thinking: bool = False


class DeferralOptions(_Strict):
    """How code of this request is run. Unset: the checkpoint's own policy."""

    enabled: bool = True
    """False: plain generation; the marker is a token like any other and no code runs."""
    eager: bool = True
    """Start a block in the background as soon as it is written; its output still waits for the marker."""
    max_turns: int | None = Field(default=None, ge=1)
    run_limit_s: float | None = Field(default=None, gt=0)


class ChatRequest(_Strict):
    """OpenAI's fields, the sampling extras of vLLM, and ``deferral``."""

    model: str
    messages: list[Message] = Field(min_length=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    """0 and -1: no limit."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """Tokens that the model may sample in the whole episode; observations are not counted."""
    n: int | None = Field(default=None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    chat_template_kwargs: ChatTemplateKwargs = ChatTemplateKwargs()
    deferral: DeferralOptions = DeferralOptions()

    stop: Annotated[object, _only([])] = None
    frequency_penalty: Annotated[object, _only(0)] = None
    presence_penalty: Annotated[object, _only(0)] = None
    repetition_penalty: Annotated[object, _only(1)] = None
    logit_bias: Annotated[object, _only({})] = None
    response_format: Annotated[object, _only({"type": "text"})] = None
    tools: Annotated[object, _only([])] = None
    tool_choice: Annotated[object, _only("none")] = None
    parallel_tool_calls: Unsupported = None
    functions: Annotated[object, _only([])] = None
    function_call: Annotated[object, _only("none")] = None
    modalities: Annotated[object, _only(["text"])] = None
    audio: Unsupported = None
    prediction: Unsupported = None
    reasoning_effort: Unsupported = None
    verbosity: Unsupported = None
    web_search_options: Unsupported = None
    store: Annotated[object, _only(False)] = None
    service_tier: Annotated[object, _only("auto", "default")] = None
    prompt_cache_retention: Unsupported = None
    moderation: Unsupported = None

    @model_validator(mode="after")
    def _together(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError("invalid_value", "'top_logprobs' needs 'logprobs' to be true")
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("invalid_value", "'stream_options' needs 'stream' to be true")
        return self

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def token_limit(self) -> int | None:
        """Bound on sampled tokens, if the client gave one."""
        return self.max_completion_tokens or self.max_tokens
