"""How many episodes run at once, and how many may wait. Admission fails; it does not wait for ever."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from service.api.errors import ApiError


@dataclass(slots=True, eq=False)
class _Waiter:
    episodes: int
    admitted: asyncio.Event = field(default_factory=asyncio.Event)


class Admission:
    """A first-come, first-served gate, counted in episodes: a request with ``n`` choices takes ``n`` places.

    Args:
        limit: episodes at once.
        queue: episodes that may wait.
        timeout_s: the longest wait in seconds.
    """

    def __init__(self, limit: int, queue: int, timeout_s: float) -> None:
        self.running = 0
        self._limit = limit
        self._queue = queue
        self._timeout_s = timeout_s
        self._waiters: deque[_Waiter] = deque()

    @property
    def waiting(self) -> int:
        """Episodes in the queue."""
        return sum(waiter.episodes for waiter in self._waiters)

    @asynccontextmanager
    async def admit(self, episodes: int = 1) -> AsyncGenerator[None, None]:
        """Hold places for ``episodes`` of one request.

        Raises:
            ApiError: 400 if they can never fit, 429 if the queue is full or the wait was too long.
        """
        if episodes > self._limit:
            raise ApiError(400, f"'n': at most {self._limit} episodes run at once here", param="n")
        if self._waiters or self.running + episodes > self._limit:
            await self._wait(episodes)
        else:
            self.running += episodes
        try:
            yield
        finally:
            self.running -= episodes
            self._wake()

    async def _wait(self, episodes: int) -> None:
        if self.waiting + episodes > self._queue:
            raise self._refusal("The server is busy and its queue is full.")
        waiter = _Waiter(episodes)
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(self._timeout_s):
                await waiter.admitted.wait()
        except BaseException as error:
            if waiter.admitted.is_set():  # admitted in the very moment of giving up
                self.running -= episodes
            else:
                self._waiters.remove(waiter)
            self._wake()
            if isinstance(error, TimeoutError):
                raise self._refusal("The server is busy and no place came free in time.") from None
            raise

    def _wake(self) -> None:
        while self._waiters and self.running + self._waiters[0].episodes <= self._limit:
            waiter = self._waiters.popleft()
            self.running += waiter.episodes
            waiter.admitted.set()

    def _refusal(self, message: str) -> ApiError:
        return ApiError(429, message, retry_after_s=min(self._timeout_s, 5.0))
