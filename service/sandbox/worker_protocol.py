"""Frames between the runner and a worker: a u32 length (big endian) and that many bytes of JSON.

What comes from a worker is hostile until checked: sizes are bounded before anything is read, only JSON is
parsed, and a frame that is not exactly of the expected shape is a ``FrameError``, after which the worker is
destroyed.

The runner's end of one worker: a channel to its supervisor, and the power to destroy it.
"""

from __future__ import annotations

import asyncio
import json
import struct
from asyncio import IncompleteReadError
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from service.sandbox.base import ExecutionResult, SandboxError

MAX_FRAME_BYTES = 1 << 20
"""Largest frame that a worker may send."""
MAX_CODE_BYTES = 1 << 20
"""Most code, in UTF-8 bytes, that one flush may hold."""

_LENGTH = struct.Struct("!I")
_DOCKER_HEADER = struct.Struct("!BxxxI")
_STDOUT, _STDERR = 1, 2
_MAX_DIAGNOSTICS = 4096


class FrameError(Exception):
    """A worker sent something that is not a frame."""


class ByteReader(Protocol):
    """The one method of ``asyncio.StreamReader`` that frames need."""

    async def readexactly(self, n: int) -> bytes: ...


def _encodable(text: str) -> str:
    text.encode()  # a lone surrogate could not be passed on
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Time = Annotated[float, Field(allow_inf_nan=False)]


class _Frame(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Ready(_Frame):
    """The worker has its namespace and waits for code."""

    op: Literal["ready"]
    python: str = Field(max_length=32)
    pid: int


class Fatal(_Frame):
    """The worker can't vouch for itself any more and leaves."""

    op: Literal["fatal"]
    reason: Text = Field(max_length=2000)


class Result(_Frame):
    """The outcome of a flush, as the supervisor saw it."""

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

    def execution_result(self, waited_seconds: float) -> ExecutionResult:
        return ExecutionResult(
            **self.model_dump(exclude={"op", "runs"}),
            waited_seconds=waited_seconds,
            runs=tuple((start, end) for start, end in self.runs),
        )


WorkerFrame = Annotated[Ready | Fatal | Result, Field(discriminator="op")]
_worker_frame: TypeAdapter[Ready | Fatal | Result] = TypeAdapter(WorkerFrame)


def encode(message: dict[str, Any]) -> bytes:
    """One frame. Lone surrogates in strings survive, escaped."""
    data = json.dumps(message).encode("ascii")
    return _LENGTH.pack(len(data)) + data


async def read_frame(reader: ByteReader) -> Ready | Fatal | Result:
    """The next frame.

    Raises:
        FrameError: too long, not JSON, or not of the expected shape.
        EOFError: the worker is gone.
    """
    try:
        (size,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if size > MAX_FRAME_BYTES:
            raise FrameError(f"a frame of {size} bytes; the most is {MAX_FRAME_BYTES}")
        data = await reader.readexactly(size)
    except IncompleteReadError as error:
        raise EOFError("the worker closed its channel") from error
    try:
        return _worker_frame.validate_python(json.loads(data))
    except (ValueError, RecursionError, ValidationError) as error:
        raise FrameError(f"not a frame: {str(error)[:200]}") from error


class DockerStream:
    """The stdout of an attached container, out of Docker's multiplexed stream.

    Docker puts 8 bytes before each piece: the stream's number, three zeros, a u32 length. What the supervisor
    writes to stderr is kept for diagnostics, within a bound.
    """

    def __init__(self, reader: ByteReader) -> None:
        self.diagnostics = ""
        self._reader = reader
        self._stdout = bytearray()

    async def readexactly(self, n: int) -> bytes:
        """Exactly ``n`` bytes of stdout.

        Raises:
            FrameError: the stream is not Docker's.
            IncompleteReadError: it ended before.
        """
        while len(self._stdout) < n:
            stream, size = _DOCKER_HEADER.unpack(await self._reader.readexactly(_DOCKER_HEADER.size))
            if stream not in (_STDOUT, _STDERR) or size > 2 * MAX_FRAME_BYTES:
                raise FrameError(f"not a piece of Docker's stream: stream {stream}, {size} bytes")
            piece = await self._reader.readexactly(size)
            if stream == _STDOUT:
                self._stdout += piece
            else:
                self.diagnostics = (self.diagnostics + piece.decode(errors="replace"))[-_MAX_DIAGNOSTICS:]
        taken = bytes(self._stdout[:n])
        del self._stdout[:n]
        return taken


class Worker(Protocol):
    """A single-use place where one session's code runs, whatever keeps it in."""

    @property
    def name(self) -> str: ...

    async def send(self, message: dict[str, Any]) -> None:
        """Send a frame. Raises SandboxError when the worker is gone."""
        ...

    async def receive(self) -> Ready | Result:
        """The next frame. Raises SandboxError for a worker that is gone, says so, or sends anything else."""
        ...

    def close(self) -> None:
        """Close the channel; the supervisor leaves at once, and all its processes with it. Can't fail."""
        ...

    async def destroy(self) -> None:
        """Make sure that nothing is left of it. Never raises; may be called twice."""
        ...


class Channel:
    """Frames over a pair of asyncio streams; the part that all workers share."""

    def __init__(self, name: str, reader: ByteReader, writer: asyncio.StreamWriter) -> None:
        self.name = name
        self._reader = reader
        self._writer = writer

    async def send(self, message: dict[str, Any]) -> None:
        try:
            self._writer.write(encode(message))
            await self._writer.drain()
        except (OSError, RuntimeError) as error:
            raise SandboxError(f"worker {self.name} is gone: {error}") from error

    async def receive(self) -> Ready | Result:
        try:
            frame = await read_frame(self._reader)
        except (FrameError, EOFError, OSError) as error:
            raise SandboxError(f"worker {self.name}: {error}") from error
        if isinstance(frame, Fatal):
            raise SandboxError(f"worker {self.name} gave up: {frame.reason}")
        return frame

    def close(self) -> None:
        self._writer.close()
