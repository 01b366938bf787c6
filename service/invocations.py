"""Hand blocks to a session in order, without making the model wait for a container."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from service.sandbox.base import ExecutionResult, SandboxError, Session


class Invocations:
    """The pending blocks of one episode on their way to its session.

    A session may have to wait for a container at its first block. The blocks queue here, so that the engine
    writes on meanwhile; a sandbox that fails tells so at the flush.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._tail: asyncio.Task[None] | None = None
        self._is_first = True
        """No block has been added since the last flush."""
        self.container_wait_s = 0.0
        """How long the first block since the last flush waited for a container."""

    def prepare(self) -> None:
        """Announce in the background that blocks are likely; those that are added meanwhile come after it."""
        self._tail = asyncio.create_task(self._session.prepare())

    def add(self, code: str) -> None:
        """Invoke ``code`` after those before it; returns at once."""
        closed_at = time.monotonic() if self._is_first else None
        self._is_first = False
        self._tail = asyncio.create_task(self._invoke(self._tail, code, closed_at))

    async def _invoke(self, before: asyncio.Task[None] | None, code: str, closed_at: float | None) -> None:
        try:
            if before is not None:
                await before
            await self._session.invoke(code)  # returns as soon as a container has the block
        finally:
            if closed_at is not None:
                self.container_wait_s = time.monotonic() - closed_at

    async def flush(self) -> ExecutionResult:
        """The result of all that was added since the last flush; ``sandbox_error`` if the sandbox failed."""
        began = time.monotonic()
        tail, self._tail = self._tail, None
        self._is_first = True
        try:
            if tail is not None:
                await tail
            result = await self._session.flush()
        except SandboxError as error:
            waited = time.monotonic() - began
            return ExecutionResult("", str(error), "sandbox_error", wall_seconds=0.0, waited_seconds=waited)
        # The session's own count begins when it has its container; the model's does not.
        return replace(result, waited_seconds=max(result.waited_seconds, time.monotonic() - began))

    async def close(self) -> None:
        """Drop what is pending and close the session."""
        if self._tail is not None:
            self._tail.cancel()
            await asyncio.gather(self._tail, return_exceptions=True)
        await self._session.close()
