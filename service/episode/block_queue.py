"""The pending blocks of an episode, on their way to the sandbox."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from service.sandbox.base import ExecutionResult, SandboxError, Session


class BlockQueue:
    """The pending blocks of one episode, handed to its session in order.

    A session may have to wait for a container at its first block. The blocks wait in this queue, so the
    engine keeps sampling meanwhile. A failure of the sandbox is reported by the next `flush`.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._last: asyncio.Task[None] | None = None
        self._is_empty = True
        """No block has been added since the last flush."""
        self.container_wait_s = 0.0
        """Seconds that the first block since the last flush waited for a container."""

    def prewarm(self) -> None:
        """Ask the session in the background for a container. Blocks added meanwhile are sent after it."""
        self._last = asyncio.create_task(self._session.prepare())

    def add(self, code: str) -> None:
        """Send ``code`` to the session after all earlier blocks. Returns immediately."""
        closed_at = time.monotonic() if self._is_empty else None
        self._is_empty = False
        self._last = asyncio.create_task(self._invoke(self._last, code, closed_at))

    async def _invoke(self, previous: asyncio.Task[None] | None, code: str, closed_at: float | None) -> None:
        try:
            if previous is not None:
                await previous
            await self._session.invoke(code)  # returns as soon as a container has the block
        finally:
            if closed_at is not None:
                self.container_wait_s = time.monotonic() - closed_at

    async def flush(self) -> ExecutionResult:
        """Return the result of all blocks since the last flush; ``sandbox_error`` if the sandbox failed."""
        began = time.monotonic()
        last, self._last = self._last, None
        self._is_empty = True
        try:
            if last is not None:
                await last
            result = await self._session.flush()
        except SandboxError as error:
            waited = time.monotonic() - began
            return ExecutionResult("", str(error), "sandbox_error", wall_seconds=0.0, waited_seconds=waited)
        # The session counts from the moment it has its container; the model has waited since the flush.
        return replace(result, waited_seconds=max(result.waited_seconds, time.monotonic() - began))

    async def close(self) -> None:
        """Drop pending blocks and close the session."""
        if self._last is not None:
            self._last.cancel()
            await asyncio.gather(self._last, return_exceptions=True)
        await self._session.close()

    async def suspend(self) -> None:
        """Stop the code of the flush; see ``Session.suspend``."""
        await self._session.suspend()

    async def resume(self) -> None:
        """Undo ``suspend``."""
        await self._session.resume()
