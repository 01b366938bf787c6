"""Schemas of responses: for the OpenAPI document, and versioned JSON schemas of published formats.

The published formats are ``executed_tools`` and ``deferral.json``; ``scripts/generate`` writes their schemas
to ``schemas/``. A breaking change gets a new number and a new file. New fields don't, so readers must ignore
unknown fields. The routes build their responses by hand, and tests check them against these schemas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from service.deferral.episode import RequestedBy
from service.deferral.policy import DeferralPolicy
from service.episode.events import CallStatus
from service.sandbox.base import EagerFallback, Status

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


class _Published(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Block(_Published):
    """A code block that the model closed."""

    code: str
    """Code without the fence."""
    invoked_at_token: int = Field(ge=0)
    """Position of the token that closed the block, in the episode."""
    invoked_at: float
    """Time at which the block was closed, in Unix seconds."""


class Run(_Published):
    """Run of a block, or of several blocks as one script. Times are Unix seconds."""

    started_at: float
    finished_at: float


class CalledTool(_Published):
    """A call of a tool by code. Times are Unix seconds."""

    id: str
    name: str
    """Name of the function in Python."""
    arguments: dict[str, Any]
    status: CallStatus
    """`ok`, `error`, or `running` if the code ended before the call."""
    read_only: bool
    """Whether the tool has no side effects, so that it could be called before the flush."""
    started_at: float
    finished_at: float | None
    output: Any
    """Result that the code got, a JSON value. The model has seen only what the code printed."""
    error: str | None
    """Message of the exception that the code got."""
    by_client: bool = False
    """The client ran the tool, between two requests. Absent if not."""


class _Tool(_Published):
    index: int = Field(ge=0)
    """Index of the flush in the reply, from 0."""
    id: str
    """Id of the flush, the same in all chunks of a stream."""
    type: Literal["python"]
    blocks: list[Block]
    """Blocks that the flush runs, in order."""


class WaitingTool(_Tool):
    """An upcoming flush in streamed chunks: `pending` until the marker, then `running` until its result.

    `suspended`, also in whole replies: its code waits for functions of the client.
    """

    status: Literal["pending", "running", "suspended"]


class FlushFile(_Published):
    """A file or figure of a flush."""

    id: str
    container_id: str
    path: str
    """Path in the container."""
    bytes: int = Field(ge=0)
    sha256: str
    media_type: str
    url: str
    """Path of the content in this API."""


class SkippedFileObject(_Published):
    path: str
    """Path in printable ASCII, below the work folder."""
    reason: str
    """`symlink`, `not_a_file` (a FIFO, socket or device), `too_large`, `too_many`, `too_deep`, `unreadable`,
    `name` (not printable UTF-8, or too long), `quota` or `not_stored`."""


class FinishedTool(_Tool):
    """A finished flush."""

    status: Status
    """`ok`, `error` (a traceback, an exit code, a signal), `timeout`, `oom`, `output_limit`, or
    `sandbox_error`: the sandbox failed and the state of the code is unknown."""
    output: str
    """Output that the model was shown."""
    delayed: int = Field(ge=0)
    """Blocks that count as delayed by the protocol's rule."""
    requested_by: RequestedBy = "model"
    """Party that requested the flush: the model with its marker, or the server by the checkpoint's policy.
    The delay rate counts only the model's flushes."""
    flushed_at: float
    """Time at which the output was requested, in Unix seconds."""
    started_at: float | None
    """Start of the first block; null if nothing ran."""
    finished_at: float | None
    runs: list[Run]
    wall_ms: float = Field(ge=0)
    """Run time of the code in milliseconds."""
    waited_ms: float = Field(ge=0)
    """Time that the model waited for the output, in milliseconds."""
    hidden_ms: float = Field(ge=0)
    """The part of `wall_ms` before `flushed_at`, while the model was still writing."""
    container_wait_ms: float = Field(default=0.0, ge=0)
    """Wait of the first block for a container in milliseconds, from its `invoked_at`. It is not part of
    `wall_ms`; the part after `flushed_at` is included in `waited_ms`."""
    pauses: list[Run] = Field(default=[])
    """Times within `runs` at which the code waited for the flush, because it called a tool with side effects.
    They are not part of `wall_ms`. Absent if there are none."""
    calls: list[CalledTool] = Field(default=[])
    """Calls of tools by the code, in order. Absent if there are none."""
    eager_fallback: EagerFallback | None = None
    """Reason for running the blocks at the flush although eager execution was on: a block has another meaning
    on its own (`not_separable`), the code forked (`forked`), something was active between two blocks
    (`background_work`), pipes, sockets or shared memory were open (`shared_state`), or the code closed the
    sandbox's own descriptor (`channel_closed`)."""
    files: list[FlushFile] | None = None
    """Files that the flush created or changed, and its figures. Omitted, like the next two fields, unless the
    request has a container that lives across requests."""
    tables: list[str] | None = None
    """HTML of a data frame that is the last expression. It is untrusted: code can choose it freely."""
    skipped_files: list[SkippedFileObject] | None = None
    """Entries of the work folder that are not returned, and files above a limit."""


def executed_tools() -> dict[str, Any]:
    """Return the schema of one item of ``message.executed_tools`` and ``delta.executed_tools``, version 1."""
    form: TypeAdapter[FinishedTool | WaitingTool] = TypeAdapter(FinishedTool | WaitingTool)
    return _titled("executed_tools", 1, form.json_schema())


def deferral() -> dict[str, Any]:
    """Return the schema of a checkpoint's ``deferral.json``, in the version that is written."""
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
"""File names and schemas."""


class _Documented(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ErrorObject(_Documented):
    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    """Path of the invalid field, such as ``messages[0].content``."""
    code: str | None
    failed_generation: str | None = None
    """With code ``tool_use_failed``: the invalid call that the model wrote."""


class ErrorBody(_Documented):
    error: ErrorObject


class CalledFunctionObject(_Documented):
    name: str
    arguments: str


class ToolCallObject(_Documented):
    """A function call for the client to make. Code that the server runs is never listed here."""

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
    """The answer alone: the content of the last complete `\\boxed{}`, else the text of the last turn. Null if
    the reply was cut, ends with code that never ran, or calls the client's functions. In a stream it is part
    of the last chunk of a choice."""
    executed_tools: list[FinishedTool] | None = None
    """Omitted if no code ran."""
    unflushed_blocks: list[Block] | None = None
    """Code that was pending when the reply ended and never ran. Omitted if there is none."""
    container: str | None = None
    """Container of the reply, for `deferral.container`. Omitted unless it lives across requests."""


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
    """Tokens given to the model, not written by it; part of ``completion_tokens``."""


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
    """Warning that the demo model can't answer with deferral off, or that the container is not the one of the
    conversation; omitted otherwise."""


class TextLogprobsObject(_Documented):
    tokens: list[str]
    token_logprobs: list[float | None]
    """Null for the first token of an echoed prompt."""
    top_logprobs: list[dict[str, float] | None]
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


class TokenizerInfo(_Documented):
    tokenizer_class: str
    eos_token: str | None
    bos_token: None
    pad_token: None


class ModelObject(_Documented):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    type: Literal["model"]
    """Field of Anthropic's API, like the next four."""
    display_name: str
    created_at: str
    lifecycle: Literal["active"]
    max_input_tokens: int
    context_length: int
    deferral: dict[str, Any]
    """Deferral policy that the checkpoint was trained with."""
    notice: str | None
    """Warning about the model, for example that it is a demo; null if there is none."""


class ModelList(_Documented):
    object: Literal["list"]
    data: list[ModelObject]
    first_id: str
    """Field of Anthropic's API, like the next two."""
    last_id: str
    has_more: Literal[False]


class Readiness(_Documented):
    status: Literal["ready", "not ready", "going down"]
    engine: Literal["ready", "not ready"] | None = None
    """Present, like ``sandbox``, in requests with a key or if the server has no keys."""
    sandbox: Literal["ready", "not ready"] | None = None


class FileObject(_Documented):
    """An uploaded file. Times are Unix seconds."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None = None
    """Omitted if the file is kept until it is deleted."""
    filename: str
    purpose: str
    status: Literal["processed"]


class FileList(_Documented):
    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ContainerExpiry(_Documented):
    anchor: Literal["last_active_at"]
    minutes: int


class NetworkPolicy(_Documented):
    type: Literal["disabled"]


class ContainerObject(_Documented):
    """A container that lives across requests. Times are Unix seconds."""

    id: str
    object: Literal["container"]
    created_at: int
    status: Literal["running", "expired"]
    expires_after: ContainerExpiry
    last_active_at: int
    memory_limit: str
    name: str
    network_policy: NetworkPolicy


class ContainerList(_Documented):
    object: Literal["list"]
    data: list[ContainerObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ContainerFileObject(_Documented):
    id: str
    object: Literal["container.file"]
    bytes: int
    container_id: str
    created_at: int
    path: str
    """Path in the container. Figures, which have no file there, are below ``/figures``."""
    source: Literal["user", "assistant"]
    sha256: str


class ContainerFileList(_Documented):
    object: Literal["list"]
    data: list[ContainerFileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request can't be served; the message states the reason."},
    "5XX": {"model": ErrorBody, "description": "The server failed, or is shutting down."},
}
METRICS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Prometheus' text format.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
}
READINESS: dict[int | str, dict[str, Any]] = {
    200: {"model": Readiness, "description": "New requests are accepted."},
    503: {"model": Readiness, "description": "New requests are rejected; the body names the missing part."},
}
COMPLETION: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ChatCompletionObject,
        "description": "The completion; with `stream`, events with `chat.completion.chunk` objects.",
        "content": {"text/event-stream": {}},
    }
}
TEXT_COMPLETION: dict[int | str, dict[str, Any]] = {
    200: {
        "model": TextCompletionObject,
        "description": "The completion; with `stream`, events with parts of the same object.",
        "content": {"text/event-stream": {}},
    }
}
FILE: dict[int | str, dict[str, Any]] = {200: {"model": FileObject, "description": "The file."}}
FILE_LIST: dict[int | str, dict[str, Any]] = {200: {"model": FileList, "description": "One page of files."}}
FILE_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The content.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
CONTAINER: dict[int | str, dict[str, Any]] = {
    200: {"model": ContainerObject, "description": "The container."}
}
CONTAINER_LIST: dict[int | str, dict[str, Any]] = {
    200: {"model": ContainerList, "description": "One page of containers."}
}
CONTAINER_FILE: dict[int | str, dict[str, Any]] = {
    200: {"model": ContainerFileObject, "description": "The file."}
}
CONTAINER_FILE_LIST: dict[int | str, dict[str, Any]] = {
    200: {"model": ContainerFileList, "description": "One page of files."}
}
