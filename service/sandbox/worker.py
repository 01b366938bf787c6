"""The runner's end of one worker: a channel to its supervisor, and the power to destroy it."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from .base import SandboxError
from .frames import ByteReader, Fatal, FrameError, Ready, Result, encode, read_frame


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
