"""How many sessions may hold a container, and how many may wait for one."""

from __future__ import annotations

import asyncio

from service.sandbox.base import QueueTimeoutError, SandboxError


class Admission:
    """A bounded number of places and a bounded queue before them; first come, first served."""

    def __init__(self, places: int, *, max_waiting: int, timeout_s: float) -> None:
        self._places = asyncio.Semaphore(places)
        self._max_waiting = max_waiting
        self._timeout_s = timeout_s
        self._closed = False
        self.waiting = 0
        self.active = 0

    async def enter(self) -> None:
        """Take a place.

        Raises:
            QueueTimeoutError: the queue is full, or no place came free in time.
            SandboxError: nobody is let in any more.
        """
        if self._closed:
            raise SandboxError("the runner is shutting down")
        if self._places.locked() and self.waiting >= self._max_waiting:
            raise QueueTimeoutError(
                f"the queue for a sandbox is full ({self._max_waiting} wait); try again later"
            )
        self.waiting += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._places.acquire()
        except TimeoutError:
            raise QueueTimeoutError(
                f"no sandbox came free in {self._timeout_s:g} s; try again later"
            ) from None
        finally:
            self.waiting -= 1
        self.active += 1

    def leave(self) -> None:
        """Give a place back."""
        self.active -= 1
        self._places.release()

    def close(self) -> None:
        """Let nobody in any more; those who wait still get their place."""
        self._closed = True
