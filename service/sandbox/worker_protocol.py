"""Worker protocol: frames between a pool and the supervisor of one worker, and the worker interface.

A frame is a u32 length (big endian) followed by that many bytes of JSON. Everything from a worker is
untrusted: sizes are bounded before anything is read, only JSON is parsed, and a frame that does not match the
schema is a ``FrameError``, after which the worker is destroyed.

The pool sends ``open`` (with the session's limits and tools), ``invoke`` (with a block) and ``flush``. The
worker sends ``Ready`` once at its start and one ``Result`` per flush, or ``Fatal`` before it exits. If
``open`` asks for it, ``Settled`` follows each result. If a ``flush`` asks for it with ``live_output``,
``OutputFrame`` precedes its result. If the session has tools, the worker also sends ``ToolCallFrame``, each
of which is answered with ``tool_result``. While such a flush waits for tools, the pool may send ``suspend``,
which is answered with ``Suspended``, and later ``resume``. After a session it may send ``reset``, which is
answered with ``Done`` once the worker is as it was at its start. Sessions with files also use ``put`` (a
frame with the name and size of an input, then its bytes), ``remove``, ``files``, ``read`` and ``discard``
(drop the pending blocks), each with one reply.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
from asyncio import IncompleteReadError
from typing import Annotated, Any, Literal, Protocol

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from service.sandbox.base import EagerFallback, ExecutionResult, OutputChunk, SandboxError
from service.sandbox.files import DisplayType, SkipReason
from service.tools.base import MAX_ARGUMENT_BYTES

MAX_FRAME_BYTES = 1 << 20
"""Largest frame that a worker may send, in bytes."""
MAX_CODE_BYTES = 1 << 20
"""Largest amount of code in one flush, in UTF-8 bytes."""

_LENGTH = struct.Struct("!I")
_DOCKER_HEADER = struct.Struct("!BxxxI")
_STDOUT, _STDERR = 1, 2
_MAX_DIAGNOSTICS = 4096


class FrameError(Exception):
    """A worker sent bytes that are not a valid frame."""


class ByteReader(Protocol):
    """The method of ``asyncio.StreamReader`` that reading frames requires."""

    async def readexactly(self, n: int) -> bytes: ...
    def at_eof(self) -> bool: ...


def _encodable(text: str) -> str:
    text.encode()  # raises on lone surrogates, which can't be encoded later
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Time = Annotated[float, Field(allow_inf_nan=False)]


class _Frame(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Ready(_Frame):
    """The worker's namespace is ready for code."""

    op: Literal["ready"]
    python: str = Field(max_length=32)
    pid: int


class Fatal(_Frame):
    """The worker can't guarantee correct results any more and exits."""

    op: Literal["fatal"]
    reason: Text = Field(max_length=2000)


class Result(_Frame):
    """The result of a flush, as observed by the supervisor."""

    op: Literal["result"]
    status: Literal["ok", "error", "timeout", "oom", "output_limit"]
    stdout: Text
    stderr: Text
    wall_seconds: float = Field(ge=0, allow_inf_nan=False)
    exit_code: int | None = Field(ge=0, le=255)
    signal: int | None = Field(ge=1, le=64)
    started_at: Time | None
    finished_at: Time | None
    runs: list[Annotated[list[Time], Field(min_length=2, max_length=2)]]
    pauses: list[Annotated[list[Time], Field(min_length=2, max_length=2)]] = []
    eager_fallback: EagerFallback | None = None

    def execution_result(self, waited_seconds: float) -> ExecutionResult:
        return ExecutionResult(
            **self.model_dump(exclude={"op", "runs", "pauses"}),
            waited_seconds=waited_seconds,
            runs=tuple((start, end) for start, end in self.runs),
            pauses=tuple((start, end) for start, end in self.pauses),
        )


class OutputFrame(_Frame):
    """Output of the running flush, for a ``flush`` with ``live_output``."""

    op: Literal["output"]
    stream: Literal["stdout", "stderr"]
    text: Text = Field(max_length=4096)
    attempt: Literal[1, 2]
    """2 if the blocks of the flush run again as one script."""
    truncated: bool
    """Output before this text was left out."""

    def chunk(self) -> OutputChunk:
        return OutputChunk(self.stream, self.text, self.attempt, self.truncated)


class Settled(_Frame):
    """After a result: the next checkpoint exists and all processes of the code are stopped."""

    op: Literal["settled"]


class Suspended(_Frame):
    """Reply to ``suspend``: all processes of the code are stopped, or the flush has ended."""

    op: Literal["suspended"]


class ToolHeld(_Frame):
    """Code has called a tool and waits for the flush. ``ToolCallFrame`` follows at the flush."""

    op: Literal["tool_held"]
    id: int = Field(ge=1)
    name: str = Field(max_length=256)
    arguments: Text = Field(max_length=MAX_ARGUMENT_BYTES)
    """JSON, as the code wrote it."""


class ToolCallFrame(_Frame):
    """Code called a tool."""

    op: Literal["tool_call"]
    id: int = Field(ge=1)
    attempt: Literal[1, 2]
    """2 if the blocks of the flush run again as one script."""
    name: str = Field(max_length=256)
    arguments: Text = Field(max_length=MAX_ARGUMENT_BYTES)
    """JSON, as the code wrote it: neither parsed nor validated yet."""
    following: int = Field(default=0, ge=0, le=64)
    """Number of calls that the code makes immediately afterwards, as it claims."""


class Done(_Frame):
    """Reply to ``put``, ``remove``, ``discard`` and ``reset``."""

    op: Literal["done"]
    error: Text | None = Field(max_length=2000)


class ListedFile(_Frame):
    path: Text = Field(min_length=1, max_length=512)
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @field_validator("path")
    @classmethod
    def _is_relative(cls, path: str) -> str:
        if not path.isprintable() or any(part in ("", ".", "..") for part in path.split("/")):
            raise ValueError("not a relative path")
        return path


class SkippedEntry(_Frame):
    path: Text = Field(max_length=400)
    reason: SkipReason


class ListedDisplay(_Frame):
    type: DisplayType
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class FileListing(_Frame):
    """Reply to ``files``: the changes in the work directory since the last listing, and the displays."""

    op: Literal["files"]
    files: list[ListedFile] = Field(max_length=64)
    skipped: list[SkippedEntry] = Field(max_length=16)
    displays: list[ListedDisplay] = Field(max_length=16)


class Data(_Frame):
    """Reply to ``read``: a part of a file, in base64; None if it can't be read."""

    op: Literal["data"]
    data: str | None = Field(max_length=MAX_FRAME_BYTES)


Reply = (
    Ready | Result | OutputFrame | Settled | Suspended | ToolHeld | ToolCallFrame | Done | FileListing | Data
)
"""A frame that a worker sends while it works correctly."""
AnyFrame = Reply | Fatal
WorkerFrame = Annotated[AnyFrame, Field(discriminator="op")]
_worker_frame: TypeAdapter[AnyFrame] = TypeAdapter(WorkerFrame)


def encode(message: dict[str, Any]) -> bytes:
    """Return ``message`` as a frame. Lone surrogates in strings are kept, escaped."""
    data = json.dumps(message).encode("ascii")
    return _LENGTH.pack(len(data)) + data


async def read_frame(reader: ByteReader) -> AnyFrame:
    """Read and validate the next frame.

    Raises:
        FrameError: it is too long, not JSON, or does not match the schema.
        EOFError: the worker closed its channel.
    """
    try:
        (size,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if size > MAX_FRAME_BYTES:
            raise FrameError(f"a frame of {size} bytes exceeds the maximum of {MAX_FRAME_BYTES}")
        data = await reader.readexactly(size)
    except IncompleteReadError as error:
        raise EOFError("the worker closed its channel") from error
    try:
        return _worker_frame.validate_python(json.loads(data))
    except (ValueError, RecursionError, ValidationError) as error:
        raise FrameError(f"invalid frame: {str(error)[:200]}") from error


class DockerStream:
    """Reader of the stdout of an attached container from Docker's multiplexed stream.

    Docker prefixes each chunk with 8 bytes: the stream's number, three zeros, a u32 length. The end of the
    supervisor's stderr is kept in ``diagnostics``.
    """

    def __init__(self, reader: ByteReader) -> None:
        self.diagnostics = ""
        self._reader = reader
        self._stdout = bytearray()

    async def readexactly(self, n: int) -> bytes:
        """Read exactly ``n`` bytes of stdout.

        Raises:
            FrameError: the stream is not in Docker's format.
            IncompleteReadError: it ended too early.
        """
        while len(self._stdout) < n:
            stream, size = _DOCKER_HEADER.unpack(await self._reader.readexactly(_DOCKER_HEADER.size))
            if stream not in (_STDOUT, _STDERR) or size > 2 * MAX_FRAME_BYTES:
                raise FrameError(f"invalid chunk in Docker's stream: stream {stream}, {size} bytes")
            chunk = await self._reader.readexactly(size)
            if stream == _STDOUT:
                self._stdout += chunk
            else:
                self.diagnostics = (self.diagnostics + chunk.decode(errors="replace"))[-_MAX_DIAGNOSTICS:]
        taken = bytes(self._stdout[:n])
        del self._stdout[:n]
        return taken

    def at_eof(self) -> bool:
        """Return whether the stream has ended."""
        return self._reader.at_eof()


class SandboxWorker(Protocol):
    """A container or process that runs the code of one session at a time."""

    @property
    def name(self) -> str: ...

    @property
    def created_at(self) -> float:
        """Monotonic time of the start."""
        ...

    @property
    def has_ended(self) -> bool:
        """Whether its channel was closed from the other side."""
        ...

    @property
    def freezable(self) -> bool:
        """Whether ``freeze`` has an effect."""
        ...

    async def send(self, message: dict[str, Any]) -> None:
        """Send a frame. A frozen worker continues.

        Raises:
            SandboxError: the worker is gone.
        """
        ...

    async def receive(self) -> Reply:
        """Receive the next frame.

        Raises:
            SandboxError: the worker is gone, reported a fatal error, or sent an invalid frame.
        """
        ...

    async def send_bytes(self, data: bytes) -> None:
        """Send a part of the input that the last frame announced.

        Raises:
            SandboxError: the worker is gone.
        """
        ...

    async def resize(self, memory_mb: int) -> None:
        """Set the memory limit. No effect if no cgroup limits the memory.

        Raises:
            SandboxError: the limit can't be set.
        """
        ...

    def freeze(self) -> None:
        """Stop all processes until the next ``send``. Never raises."""
        ...

    def freezing_failed(self, reason: str) -> None:
        """Do not freeze this worker any more, nor those that start later."""
        ...

    def close(self) -> None:
        """Close the channel, on which the supervisor exits with all its processes. Never raises."""
        ...

    async def destroy(self) -> None:
        """Remove the worker completely. Never raises; may be called twice."""
        ...


class Channel:
    """Base of all workers: frames over a pair of asyncio streams. It can't be frozen."""

    freezable = False

    def __init__(self, name: str, reader: ByteReader, writer: asyncio.StreamWriter) -> None:
        self.name = name
        self._reader = reader
        self._writer = writer
        self.created_at = time.monotonic()

    @property
    def has_ended(self) -> bool:
        return self._reader.at_eof()

    async def send(self, message: dict[str, Any]) -> None:
        try:
            self._writer.write(encode(message))
            await self._writer.drain()
        except (OSError, RuntimeError) as error:
            raise SandboxError(f"worker {self.name} is gone: {error}") from error

    async def send_bytes(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except (OSError, RuntimeError) as error:
            raise SandboxError(f"worker {self.name} is gone: {error}") from error

    async def resize(self, memory_mb: int) -> None: ...

    async def receive(self) -> Reply:
        try:
            frame = await read_frame(self._reader)
        except (FrameError, EOFError, OSError) as error:
            raise SandboxError(f"worker {self.name}: {error}") from error
        if isinstance(frame, Fatal):
            raise SandboxError(f"worker {self.name} failed: {frame.reason}")
        return frame

    def freeze(self) -> None:
        pass

    def freezing_failed(self, reason: str) -> None:
        pass

    def close(self) -> None:
        self._writer.close()
