"""The published forms of ``executed_tools`` and ``deferral.json``, as versioned JSON schemas.

``scripts/generate`` writes them to ``schemas/``. A change that breaks a reader takes a new number and a new
file; a field that is added does not, so readers must pass over fields that they don't know.

Responses as the OpenAPI document shows them. The routes build them by hand; tests hold them to these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from service.deferral.episode import RequestedBy
from service.deferral.policy import DeferralPolicy
from service.sandbox.base import EagerFallback, Status

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


class _Published(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Block(_Published):
    """A code block that the model closed."""

    code: str
    """Its text, without the fence."""
    invoked_at_token: int = Field(ge=0)
    """Position in the episode of the token that closed it."""
    invoked_at: float
    """When that was, in Unix seconds."""


class Run(_Published):
    """When a block, or several as one script, ran. Unix seconds."""

    started_at: float
    finished_at: float


class _Tool(_Published):
    index: int = Field(ge=0)
    """Place of the flush in the reply, from 0."""
    id: str
    """The same in every chunk of a stream that speaks of this flush."""
    type: Literal["python"]
    blocks: list[Block]
    """All blocks that the flush runs, in order."""


class WaitingTool(_Tool):
    """A flush to be, in chunks of a stream: `pending` until the marker, then `running` until its result."""

    status: Literal["pending", "running"]


class FinishedTool(_Tool):
    """A flush that is done."""

    status: Status
    """`ok`, `error` (a traceback, an exit code, a signal), `timeout`, `oom`, `output_limit`, or
    `sandbox_error`: the sandbox failed, and nothing is known of the code."""
    output: str
    """What the model was shown."""
    delayed: int = Field(ge=0)
    """Blocks that did not run at once when they were closed, by the rule of the protocol."""
    requested_by: RequestedBy = "model"
    """Who decided that the blocks run: the model with its marker, or the server by the checkpoint's policy.
    The delay rate counts the model's flushes only."""
    flushed_at: float
    """When the model, or the server for it, asked for the output, in Unix seconds."""
    started_at: float | None
    """When the first block began to run; null where nothing ran."""
    finished_at: float | None
    runs: list[Run]
    wall_ms: float = Field(ge=0)
    """How long the code ran."""
    waited_ms: float = Field(ge=0)
    """How long the model waited for it."""
    hidden_ms: float = Field(ge=0)
    """The part of `wall_ms` before `flushed_at`, that is, while the model was still writing."""
    container_wait_ms: float = Field(default=0.0, ge=0)
    """How long the first block waited for a container, from its `invoked_at`. Not part of `wall_ms`; what of
    it lies after `flushed_at` is part of `waited_ms`."""
    eager_fallback: EagerFallback | None = None
    """Why the blocks ran at the flush although eager execution was on: one of them means something else alone
    (`not_separable`), code forked (`forked`), something was active between two blocks (`background_work`),
    pipes, sockets or shared memory were open (`shared_state`), or code closed the sandbox's own descriptor
    (`channel_closed`)."""


def executed_tools() -> dict[str, Any]:
    """Schema of one item of ``message.executed_tools`` and ``delta.executed_tools``, version 1."""
    form: TypeAdapter[FinishedTool | WaitingTool] = TypeAdapter(FinishedTool | WaitingTool)
    return _titled("executed_tools", 1, form.json_schema())


def deferral() -> dict[str, Any]:
    """Schema of ``deferral.json`` beside a checkpoint's weights, in the version that is written."""
    version = DeferralPolicy.model_fields["schema_version"].default
    return _titled("deferral", version, DeferralPolicy.model_json_schema())


def _titled(name: str, version: int, schema: dict[str, Any]) -> dict[str, Any]:
    return {"$schema": _DIALECT, "$id": f"urn:ih-grpo:{name}:{version}", "title": name} | {
        key: value for key, value in schema.items() if key != "title"
    }


SCHEMAS: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "executed_tools-1.json": executed_tools,
    f"deferral-{DeferralPolicy.model_fields['schema_version'].default}.json": deferral,
}
"""File name and schema of each."""


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
