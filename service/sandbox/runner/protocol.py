"""What the runner and its clients say to each other: JSON text frames on one WebSocket, strictly checked.

One connection is one session and one lease. The client speaks first (``open``). Each request has one reply,
in order; at most ``MAX_AHEAD`` wait for theirs. ``close`` may come at any time; a dropped connection means
the same.

Where the runner is found: ``unix:/path/to.sock``, ``host:port`` or ``ws://host:port``.
"""

from __future__ import annotations

import socket
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from service.sandbox.base import ExecutionResult, QueueTimeoutError, SandboxError

SESSION_PATH = "/session"
MAX_CODE_CHARS = 1_000_000
"""Longest block, in characters."""
MAX_REQUEST_BYTES = 2 * 1024 * 1024
"""Largest frame to the runner."""
MAX_REPLY_BYTES = 8 * 1024 * 1024
"""Largest frame to the client: an output at its cap, escaped."""
MAX_AHEAD = 8
"""Most requests that a client may send ahead of their replies."""
MAX_TEXT_CHARS = 2000
"""Longest error text."""

MAX_CLOSE_REASON_BYTES = 123
"""What a close frame can hold (RFC 6455)."""

CLOSE_VIOLATION = 1008
CLOSE_INTERNAL = 1011
CLOSE_LEASE_OVER = 4408


T = TypeVar("T")


class MessageError(ValueError):
    """A frame is not one of the messages below. Its text names the field, never the content."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


class Open(_Message):
    """The session's limits; the runner clips them to its ceiling. Answered by ``Opened``."""

    type: Literal["open"] = "open"
    run_limit_s: float = Field(gt=0, allow_inf_nan=False)
    eager: bool


class Invoke(_Message):
    """One more pending block. Answered by ``Invoked`` once a container has it, or by ``Failed``."""

    type: Literal["invoke"] = "invoke"
    code: str = Field(max_length=MAX_CODE_CHARS)


class Flush(_Message):
    """Deliver what is pending. Answered by ``Flushed`` or ``Failed``."""

    type: Literal["flush"] = "flush"


class Close(_Message):
    """Give the container up. The runner closes the connection when it is gone."""

    type: Literal["close"] = "close"


class Opened(_Message):
    """The limits that hold."""

    type: Literal["opened"] = "opened"
    run_limit_s: float
    eager: bool


class Invoked(_Message):
    type: Literal["invoked"] = "invoked"


class Flushed(_Message):
    type: Literal["flushed"] = "flushed"
    result: ExecutionResult


class Failed(_Message):
    """The request came to nothing; the session lives on."""

    type: Literal["failed"] = "failed"
    reason: Literal["queue_timeout", "sandbox_error"]
    text: str = Field(max_length=MAX_TEXT_CHARS)


Request = Open | Invoke | Flush | Close
Reply = Opened | Invoked | Flushed | Failed

_requests: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="type")])
_replies: TypeAdapter[Reply] = TypeAdapter(Annotated[Reply, Field(discriminator="type")])


def encode(message: Request | Reply) -> str:
    """The frame of ``message``."""
    return message.model_dump_json()


def decode_request(frame: str | bytes | None) -> Request:
    """The request in a frame from a client.

    Raises:
        MessageError: it is none, or a field is wrong, unknown or too long.
    """
    return _decode(_requests, frame)


def decode_reply(frame: str | bytes | None) -> Reply:
    """The reply in a frame from the runner; raises MessageError as ``decode_request`` does."""
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


def invoke(code: str) -> Invoke:
    """The request that carries ``code``; raises MessageError if it is too long."""
    if len(code) > MAX_CODE_CHARS:
        raise MessageError(
            f"the block has {len(code)} characters; the sandbox takes at most {MAX_CODE_CHARS}"
        )
    return Invoke(code=_encodable(code))


def flushed(result: ExecutionResult) -> Flushed:
    """The reply that carries ``result``."""
    return Flushed(result=replace(result, stdout=_encodable(result.stdout), stderr=_encodable(result.stderr)))


def failed(error: SandboxError) -> Failed:
    """The reply that carries ``error``."""
    reason: Literal["queue_timeout", "sandbox_error"] = (
        "queue_timeout" if isinstance(error, QueueTimeoutError) else "sandbox_error"
    )
    return Failed(reason=reason, text=_encodable(str(error))[:MAX_TEXT_CHARS])


def _encodable(text: str) -> str:
    # Lone surrogates can't be written in UTF-8. Spelled out (\\udc80), a string literal still means the same.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True, slots=True)
class Address:
    """A Unix socket (``path``) or a TCP address (``host``, ``port``); port 0 means any free one."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``unix:PATH``, ``HOST:PORT`` or ``[IPV6]:PORT``, or ``ws://HOST:PORT``; raises ValueError."""
        if text.startswith("unix:"):
            path = Path(text.removeprefix("unix:").removeprefix("//"))
            if not path.is_absolute():
                raise ValueError(
                    f"{text!r}: the path of a Unix socket must be absolute, as in unix:/run/runner.sock"
                )
            return cls(path=path)
        host, _, port = text.removeprefix("ws://").removesuffix("/").rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or "/" in host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise ValueError(f"{text!r} is no address: write unix:/path/to.sock or host:port")
        return cls(host=host, port=int(port))

    @property
    def authority(self) -> str:
        """The host part of a URL; ``localhost`` for a Unix socket."""
        if self.path is not None:
            return "localhost"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path is not None else self.authority

    def listen(self, mode: int) -> socket.socket:
        """A listening socket. A Unix socket has the permissions ``mode`` from its first moment on.

        A socket file that nobody listens on (its owner was killed) is replaced.

        Raises:
            OSError: the address is in use or not allowed.
        """
        if self.path is None:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            return socket.create_server((self.host, self.port), family=family, backlog=512)
        _remove_if_dead(self.path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(self.path))
            # Nobody can connect before listen(), so the mode is in force in time.
            self.path.chmod(mode)
            listener.listen(512)
        except OSError:
            listener.close()
            raise
        return listener


def _remove_if_dead(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(f"{path} exists and is no socket; give another path or remove it")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        else:
            raise OSError(f"{path} is in use: another runner listens there")
