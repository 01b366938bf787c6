"""The events of a response that runs in the background: written once, read by any number, from anywhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

from service.api.wire import Json
from service.store.responses import ResponseStore

_KEEP_S = 0.5
_KEEP_EVENTS = 64


class EventLog:
    """The latest events in memory, all others in the store.

    Args:
        store: where events go, a batch at a time.
        response_id: whose they are.
    """

    def __init__(self, store: ResponseStore, response_id: str) -> None:
        self._store = store
        self._id = response_id
        self._tail: list[Json] = []
        self._stored = -1
        self._kept_at = time.monotonic()
        self._over = False
        self._news = asyncio.Event()
        self._lock = asyncio.Lock()
        self._keeping: asyncio.Future[None] | None = None

    async def add(self, event: Json) -> None:
        """One more event."""
        self._tail.append(event)
        self._tell()
        if len(self._tail) >= _KEEP_EVENTS or time.monotonic() - self._kept_at >= _KEEP_S:
            # Whoever is cancelled here must not leave a batch of which nobody knows whether it is stored.
            self._keeping = asyncio.ensure_future(self._keep())
            await asyncio.shield(self._keeping)

    async def close(self) -> None:
        """That was the last one."""
        try:
            await self._keep()
        finally:
            self._over = True
            self._tell()

    async def read(self, after: int) -> AsyncGenerator[Json, None]:
        """The events with numbers above ``after``, those to come too."""
        while True:
            over, news = self._over, self._news
            behind = after < self._stored
            events = await self._store.events_after(self._id, after) if behind else self._tail
            for event in [event for event in events if number(event) > after]:
                after = number(event)
                yield event
            if behind and events:
                continue
            if over or behind:  # nothing where there must be something: it was deleted
                return
            if after >= self._last():
                await news.wait()

    def _last(self) -> int:
        return number(self._tail[-1]) if self._tail else self._stored

    async def _keep(self) -> None:
        async with self._lock:
            batch = list(self._tail)
            self._kept_at = time.monotonic()
            if batch:
                await self._store.add_events(self._id, batch)
                self._tail = self._tail[len(batch) :]
                self._stored = number(batch[-1])

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


def number(event: Json) -> int:
    """The event's sequence number."""
    value = event["sequence_number"]
    assert isinstance(value, int)  # noqa: S101  (ours)
    return value
