"""Protocol between the runner and its clients.

Messages are JSON text frames on one WebSocket (``SESSION_PATH``), validated strictly on both sides. One
connection is one session and one lease:

1. The client sends ``OpenRequest`` first and exactly once.
2. It then sends ``InvokeRequest`` and ``FlushRequest`` in any order. Each request has one reply, in order. At
   most ``MAX_AHEAD`` requests may wait for their replies.
   A session that was opened with ``files`` also takes the other requests. After a ``PutRequest`` the client
   sends the input in binary frames; before its reply to a ``ReadRequest`` the runner sends the file in them.
3. ``CloseRequest`` is valid at any time. A dropped connection has the same effect.
4. If the session has tools, the runner sends a ``ToolCallMessage`` whenever code calls one. The client
   answers each with a ``ToolResultMessage``, in any order and at any time. With a ``SuspendMessage`` it stops
   the code of the flush, and resumes it. None of them counts as a request.
5. Before its reply to a ``FlushRequest`` with ``live_output`` the runner sends ``OutputMessage``.

The runner listens on a Unix socket or on a TCP port, see ``Address``. Its load is a ``LoadReport``.
"""

from __future__ import annotations

import socket
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from service.sandbox.base import (
    ExecutionResult,
    OutputChunk,
    QueueTimeoutError,
    SandboxError,
    SessionLimits,
)
from service.sandbox.files import Display, FileChanges, WorkFile
from service.tools.base import MAX_ARGUMENT_BYTES, MAX_RESULT_BYTES, ToolSpec

SESSION_PATH = "/session"
READY_PATH = "/ready"
DRAIN_PATH = "/drain"
MAX_CODE_CHARS = 1_000_000
"""Longest block, in characters."""
MAX_REQUEST_BYTES = 2 * 1024 * 1024
"""Largest frame to the runner."""
MAX_REPLY_BYTES = 8 * 1024 * 1024
"""Largest frame to the client. Holds an output of the maximum size, escaped."""
CHUNK_BYTES = 1024 * 1024
"""Largest binary frame."""
MAX_AHEAD = 8
"""Highest number of requests that may wait for their replies."""
MAX_TEXT_CHARS = 2000
"""Longest error text."""
MAX_TOOLS = 128
"""Highest number of tools of a session."""

MAX_CLOSE_REASON_BYTES = 123
"""Longest reason in a close frame (RFC 6455)."""

CLOSE_VIOLATION = 1008
CLOSE_INTERNAL = 1011
CLOSE_LEASE_OVER = 4408


T = TypeVar("T")


class MessageError(ValueError):
    """A frame is not a valid message. The error names the field and never repeats the content."""


class QueueFullError(QueueTimeoutError):
    """The runner's queue is full. Another runner may have room."""


class DrainingError(SandboxError):
    """The runner takes no new sessions, because it is draining or shutting down."""


FailureReason = Literal["queue_timeout", "queue_full", "draining", "sandbox_error"]
_FAILURES: dict[FailureReason, type[SandboxError]] = {
    "queue_full": QueueFullError,  # before its base class
    "queue_timeout": QueueTimeoutError,
    "draining": DrainingError,
    "sandbox_error": SandboxError,
}


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


class FileOptions(_Message):
    """Options of a session with files."""

    memory_mb: int | None = Field(default=None, ge=1, le=1 << 20)


class _Limits(_Message):
    """Limits of flushes, which the runner clips, and the tools that their code can call."""

    run_limit_s: float = Field(gt=0, allow_inf_nan=False)
    eager: bool
    tool_wait_s: float = Field(default=SessionLimits().tool_wait_s, ge=0, allow_inf_nan=False)
    tool_calls: int = Field(default=SessionLimits().tool_calls, ge=0)
    tools: tuple[ToolSpec, ...] = Field(default=(), max_length=MAX_TOOLS)


class OpenRequest(_Limits):
    """Open a session with these limits. Answered by ``OpenedReply``."""

    type: Literal["open"] = "open"
    files: FileOptions | None = None
    """None for a session without files."""


class LeaseRequest(_Message):
    """Lease a container now. Answered by ``DoneReply`` or ``FailedReply``, like the following requests."""

    type: Literal["lease"] = "lease"


class ConfigureRequest(_Limits):
    """Change the limits and tools of the following flushes."""

    type: Literal["configure"] = "configure"
    figures: Literal["png", "svg"] | None


class PutRequest(_Message):
    """Write an input; its content follows."""

    type: Literal["put"] = "put"
    name: str = Field(min_length=1, max_length=200)
    size: int = Field(ge=0, le=1 << 40)


class RemoveRequest(_Message):
    """Remove an input."""

    type: Literal["remove"] = "remove"
    name: str = Field(min_length=1, max_length=200)


class ChangesRequest(_Message):
    """List the changes since the last listing. Answered by ``ChangesReply`` or ``FailedReply``."""

    type: Literal["changes"] = "changes"


class ReadRequest(_Message):
    """Return the content of a listed item. Its binary frames precede the reply."""

    type: Literal["read"] = "read"
    item: WorkFile | Display


class ParkRequest(_Message):
    """Drop the pending blocks, or with ``freeze`` stop all processes of the parked container."""

    type: Literal["park"] = "park"
    freeze: bool


class InvokeRequest(_Message):
    """Add a pending block. Answered by ``InvokedReply`` once a container has it, or by ``FailedReply``."""

    type: Literal["invoke"] = "invoke"
    code: str = Field(max_length=MAX_CODE_CHARS)


class FlushRequest(_Message):
    """Run the pending blocks and return their result. Answered by ``FlushedReply`` or ``FailedReply``."""

    type: Literal["flush"] = "flush"
    live_output: bool = False
    """Send the output of the code while it runs."""


class CloseRequest(_Message):
    """End the session. The runner closes the connection once the container is removed."""

    type: Literal["close"] = "close"


class ToolResultMessage(_Message):
    """The result of a call, or its error message."""

    type: Literal["tool_result"] = "tool_result"
    call_id: str = Field(max_length=64)
    ok: bool
    value: str = Field(max_length=MAX_RESULT_BYTES)
    """JSON if ``ok``, otherwise the message."""
    denied: bool = False


class SuspendMessage(_Message):
    """Stop the code of the current flush, or resume it."""

    type: Literal["suspend"] = "suspend"
    on: bool


class ToolCallMessage(_Message):
    """Code called a tool. The arguments are not validated."""

    type: Literal["tool_call"] = "tool_call"
    call_id: str = Field(max_length=64)
    name: str = Field(max_length=256)
    arguments: str = Field(max_length=6 * MAX_ARGUMENT_BYTES)
    """A JSON object."""


class ToolHeldMessage(_Message):
    """Code has called a tool that needs approval and waits for the flush."""

    type: Literal["tool_held"] = "tool_held"
    name: str = Field(max_length=256)
    arguments: str


class OutputMessage(_Message):
    """Output that the code of the running flush has written."""

    type: Literal["output"] = "output"
    chunk: OutputChunk


class OpenedReply(_Message):
    """The limits that apply to the session."""

    type: Literal["opened"] = "opened"
    run_limit_s: float
    eager: bool
    queue_timeout_s: float = Field(gt=0)
    """Time that the session may wait for its container."""


class InvokedReply(_Message):
    """A container has the block."""

    type: Literal["invoked"] = "invoked"


class FlushedReply(_Message):
    """The result of a flush."""

    type: Literal["flushed"] = "flushed"
    result: ExecutionResult


class DoneReply(_Message):
    """The request was executed, or rejected with ``error``; then the session is unchanged."""

    type: Literal["done"] = "done"
    error: str | None = Field(default=None, max_length=MAX_TEXT_CHARS)


class ChangesReply(_Message):
    """The changes since the last listing."""

    type: Literal["changed"] = "changed"
    changes: FileChanges


class FailedReply(_Message):
    """The request failed. The session stays open."""

    type: Literal["failed"] = "failed"
    reason: FailureReason
    text: str = Field(max_length=MAX_TEXT_CHARS)


class LoadReport(_Message):
    """The state of a runner, with which a client chooses between several (``GET /ready``)."""

    state: Literal["ready", "not_ready", "draining"]
    max_sessions: int = Field(ge=1)
    """Sessions that can hold a container at the same time."""
    connections: int = Field(ge=0)
    """Open sessions: those with a container, those that wait for one and those without a block."""
    sessions: int = Field(ge=0)
    """Sessions that hold a container."""
    waiting: int = Field(ge=0)
    """Sessions that wait for a container."""


FileRequest = (
    LeaseRequest | ConfigureRequest | PutRequest | RemoveRequest | ChangesRequest | ReadRequest | ParkRequest
)
RunnerRequest = (
    OpenRequest
    | InvokeRequest
    | FlushRequest
    | CloseRequest
    | ToolResultMessage
    | SuspendMessage
    | FileRequest
)
RunnerReply = (
    OpenedReply
    | InvokedReply
    | FlushedReply
    | FailedReply
    | ToolCallMessage
    | ToolHeldMessage
    | OutputMessage
    | DoneReply
    | ChangesReply
)

_requests: TypeAdapter[RunnerRequest] = TypeAdapter(Annotated[RunnerRequest, Field(discriminator="type")])
_replies: TypeAdapter[RunnerReply] = TypeAdapter(Annotated[RunnerReply, Field(discriminator="type")])


def encode(message: RunnerRequest | RunnerReply) -> str:
    """Return ``message`` as a text frame."""
    return message.model_dump_json()


def decode_request(frame: str | bytes | None) -> RunnerRequest:
    """Parse a frame from a client.

    Raises:
        MessageError: it is not a request, or a field is missing, invalid, unknown or too long.
    """
    return _decode(_requests, frame)


def decode_reply(frame: str | bytes | None) -> RunnerReply:
    """Parse a frame from the runner.

    Raises:
        MessageError: it is not a reply, or a field is missing, invalid, unknown or too long.
    """
    return _decode(_replies, frame)


def _decode(adapter: TypeAdapter[T], frame: str | bytes | None) -> T:
    if not isinstance(frame, str):
        raise MessageError("a frame must be JSON text")
    try:
        return adapter.validate_json(frame, strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "frame"
        raise MessageError(f"{where}: {first['msg']}") from None


def invoke_request(code: str) -> InvokeRequest:
    """Return the request for the block ``code``.

    Raises:
        MessageError: it is too long.
    """
    if len(code) > MAX_CODE_CHARS:
        raise MessageError(
            f"the block has {len(code)} characters; the sandbox takes at most {MAX_CODE_CHARS}"
        )
    return InvokeRequest(code=_encodable(code))


def done_reply(error: ValueError | None = None) -> DoneReply:
    """Return the reply to a request that was executed, or rejected with ``error``."""
    return DoneReply(error=None if error is None else _encodable(str(error))[:MAX_TEXT_CHARS])


def flushed_reply(result: ExecutionResult) -> FlushedReply:
    """Return the reply to a flush with ``result``."""
    encodable = replace(result, stdout=_encodable(result.stdout), stderr=_encodable(result.stderr))
    return FlushedReply(result=encodable)


def failed_reply(error: SandboxError) -> FailedReply:
    """Return the reply to a request that raised ``error``."""
    reason = next(reason for reason, kind in _FAILURES.items() if isinstance(error, kind))
    return FailedReply(reason=reason, text=_encodable(str(error))[:MAX_TEXT_CHARS])


def failure(reply: FailedReply) -> SandboxError:
    """Return the error that ``reply`` stands for."""
    return _FAILURES[reply.reason](reply.text)


def _encodable(text: str) -> str:
    # UTF-8 can't encode lone surrogates. As an escape (\\udc80), they keep their meaning in a string literal.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True, slots=True)
class Address:
    """A Unix socket (``path``) or a TCP address (``host``, ``port``). Port 0 means any free port."""

    path: Path | None = None
    host: str = ""
    port: int = 0
    scheme: Literal["", "ws", "wss"] = ""
    """``wss`` requires TLS and ``ws`` rules it out; without a scheme, TLS is used if it is configured."""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse ``unix:PATH``, ``HOST:PORT``, ``[IPV6]:PORT``, ``ws://HOST:PORT`` or ``wss://HOST:PORT``.

        Raises:
            ValueError: it is not an address.
        """
        if text.startswith("unix:"):
            path = Path(text.removeprefix("unix:").removeprefix("//"))
            if not path.is_absolute():
                raise ValueError(
                    f"{text!r}: the path of a Unix socket must be absolute, as in unix:/run/runner.sock"
                )
            return cls(path=path)
        scheme: Literal["", "ws", "wss"] = (
            "wss" if text.startswith("wss://") else "ws" if text.startswith("ws://") else ""
        )
        host, _, port = text.removeprefix(f"{scheme}://").removesuffix("/").rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or "/" in host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise ValueError(f"{text!r} is not an address: write unix:/path/to.sock or host:port")
        return cls(host=host, port=int(port), scheme=scheme)

    @property
    def authority(self) -> str:
        """The host and port of a URL; ``localhost`` for a Unix socket."""
        if self.path is not None:
            return "localhost"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        scheme = f"{self.scheme}://" if self.scheme else ""
        return f"unix:{self.path}" if self.path is not None else f"{scheme}{self.authority}"

    def listen(self, mode: int) -> socket.socket:
        """Return a listening socket.

        A Unix socket gets the permissions ``mode`` before anyone can connect. A stale socket file, left by a
        process that was killed, is replaced.

        Raises:
            OSError: the address is in use or not permitted.
        """
        if self.path is None:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            return socket.create_server((self.host, self.port), family=family, backlog=512)
        _remove_if_stale(self.path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(self.path))
            # No one can connect before listen(), so the mode applies to every connection.
            self.path.chmod(mode)
            listener.listen(512)
        except OSError:
            listener.close()
            raise
        return listener


def _remove_if_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(f"{path} exists and is not a socket; use another path or remove it")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        else:
            raise OSError(f"{path} is in use: another runner is listening there")
