"""Responses as the OpenAPI document shows them. The routes build them by hand; tests hold them to these."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from service.schemas import Block, FinishedTool


class _Documented(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ErrorObject(_Documented):
    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    """The field at fault, as ``messages[0].content``."""
    code: str | None
    failed_generation: str | None = None
    """With code ``tool_use_failed``: what the model wrote instead of a call that can be made."""


class ErrorBody(_Documented):
    error: ErrorObject


class CalledFunctionObject(_Documented):
    name: str
    arguments: str


class ToolCallObject(_Documented):
    """A call of the client's own function, for the client to make. Server-run code is never here."""

    id: str
    type: Literal["function"]
    function: CalledFunctionObject


class MessageObject(_Documented):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallObject] | None = None
    final_answer: str | None
    """Just the answer: what the last complete `\\boxed{}` holds, else the text of the last turn. Null if the
    reply was cut, ends with code that never ran, or calls the client's functions. In a stream it comes with
    the last chunk of a choice."""
    executed_tools: list[FinishedTool] | None = None
    """Left out where no code ran."""
    unflushed_blocks: list[Block] | None = None
    """Code that was still pending when the reply ended, and never ran. Left out if there is none."""


class TokenLogprob(_Documented):
    token: str
    logprob: float
    bytes: list[int] | None


class ContentLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class LogprobsObject(_Documented):
    content: list[ContentLogprob]
    refusal: None


class ChoiceObject(_Documented):
    index: int
    message: MessageObject
    logprobs: LogprobsObject | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class PromptDetails(_Documented):
    cached_tokens: int


class CompletionDetails(_Documented):
    reasoning_tokens: int
    observation_tokens: int
    """Given to the model, not written by it; part of ``completion_tokens``."""


class UsageObject(_Documented):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails


class ChatCompletionObject(_Documented):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChoiceObject]
    usage: UsageObject
    notice: str | None = None
    """Says that the demo model was asked with deferral off, which it can't answer; absent otherwise."""


class TextLogprobsObject(_Documented):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoiceObject(_Documented):
    index: int
    text: str
    logprobs: TextLogprobsObject | None
    finish_reason: Literal["stop", "length"]


class TextUsageObject(_Documented):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TextCompletionObject(_Documented):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoiceObject]
    usage: TextUsageObject


class TokenizedObject(_Documented):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizedObject(_Documented):
    prompt: str


class ModelObject(_Documented):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int
    deferral: dict[str, Any]
    """The policy that the checkpoint was trained with."""
    notice: str | None
    """What to know before relying on this model, as that it is a demo; null if there is nothing to say."""


class ModelList(_Documented):
    object: Literal["list"]
    data: list[ModelObject]


class Readiness(_Documented):
    status: Literal["ready", "not ready", "going down"]
    engine: Literal["ready", "not ready"] | None = None
    """This and the next are there for a request with a key, or where no key is asked for."""
    sandbox: Literal["ready", "not ready"] | None = None


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request can't be served; the message says why."},
    "5XX": {"model": ErrorBody, "description": "The server failed, or is going down."},
}
METRICS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Prometheus' text format.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
}
READINESS: dict[int | str, dict[str, Any]] = {
    200: {"model": Readiness, "description": "New requests will be served."},
    503: {"model": Readiness, "description": "They will not; it says which part is missing."},
}
COMPLETION: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ChatCompletionObject,
        "description": "The completion; with `stream`, events that hold `chat.completion.chunk` objects.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
TEXT_COMPLETION: dict[int | str, dict[str, Any]] = {
    200: {
        "model": TextCompletionObject,
        "description": "The completion; with `stream`, events that hold pieces of the same object.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
