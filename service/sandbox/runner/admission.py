"""Admission of sessions: a bound on those with a container and on those that wait for one."""

from __future__ import annotations

import asyncio

from service.sandbox.base import QueueTimeoutError
from service.sandbox.runner.protocol import DrainingError, QueueFullError


class SessionAdmission:
    """A bounded number of slots with a bounded first-in, first-out queue."""

    def __init__(self, slots: int, *, max_waiting: int, timeout_s: float) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._max_waiting = max_waiting
        self._timeout_s = timeout_s
        self._closed = False
        self.waiting = 0
        self.active = 0

    async def enter(self) -> None:
        """Wait for a slot and take it.

        Raises:
            QueueFullError: the queue is full.
            QueueTimeoutError: no slot became free in time.
            DrainingError: admission is closed.
        """
        if self._closed:
            raise DrainingError("the runner is draining and takes no new sessions")
        if self._slots.locked() and self.waiting >= self._max_waiting:
            raise QueueFullError(
                f"the queue for a sandbox is full ({self._max_waiting} waiting); try again later"
            )
        self.waiting += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._slots.acquire()
        except TimeoutError:
            raise QueueTimeoutError(
                f"no sandbox became free within {self._timeout_s:g} s; try again later"
            ) from None
        finally:
            self.waiting -= 1
        self.active += 1

    def leave(self) -> None:
        """Release a slot."""
        self.active -= 1
        self._slots.release()

    def close(self) -> None:
        """Reject new sessions. Those that already wait still get a slot."""
        self._closed = True

    def reopen(self) -> None:
        """Undo ``close``."""
        self._closed = False
