"""Stored and running responses of one server: the store, its maintenance, and background runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Final

import structlog
from fastapi import Depends, Request

from service.api.limits import Drain
from service.api.responses.resource import cut
from service.api.responses.run import Background, ResponseRun
from service.store.maintenance import StoreMaintenance
from service.store.replies import ReplyStore
from service.store.responses import ResponseStore, StoredResponse

_BEAT_S: Final = 5.0
"""Interval of the maintenance task."""
_CLEAN_EVERY: Final = 12
"""Beats between two clean-ups."""
_DAY_S: Final = 86_400

_log = structlog.get_logger(__name__)


class Responses:
    """Registry of the server's responses; ``app.state.responses``.

    Args:
        store_url: see `ResponseStore`.
        days: how long a response is kept.
        max_bytes: approximate size limit of the store; above it the oldest responses are removed first.
        max_background: responses that may run or wait in the background.
        drain: reports when the server shuts down.

    Raises:
        StoreError: the store's URL is invalid.
    """

    def __init__(
        self, store_url: str, *, days: float, max_bytes: int, max_background: int, drain: Drain
    ) -> None:
        self.store = ResponseStore(store_url)
        self.replies = ReplyStore(self.store.engine, days=days, max_bytes=max_bytes // 8)
        self.background = Background(self.store, max_background, drain)
        self._seconds_kept = days * _DAY_S
        self._maintenance = StoreMaintenance(self.store, max_bytes=max_bytes)
        self._loop: asyncio.Task[None] | None = None
        self.cleaners: list[Callable[[], Awaitable[object]]] = []
        """Clean-ups of other tables of the store, run together with those of the responses."""

    async def start(self) -> None:
        """Open the store, and mark responses that an earlier server left running as failed.

        Raises:
            StoreError: the store can't be opened.
        """
        await self.store.start()
        if count := await self._maintenance.fail_interrupted(cut):
            _log.warning("responses_cut", count=count)
        await self._clean()
        self._loop = asyncio.create_task(self._maintain())

    async def stop(self) -> None:
        """End running background responses as failed and close the store."""
        if self._loop is not None:
            await self.background.stop()
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        await self.store.stop()

    async def store_ended(self, run: ResponseRun) -> bool:
        """Store a response that has ended. Return False if it was ended elsewhere before."""
        body = run.resource.body()
        request, reply = run.prepared.request, run.output.reply
        if request.background:
            return await self.store.change(
                run.prepared.id, status=run.resource.status, body=body, text=reply.text, ids=reply.ids
            )
        if request.stored:
            await self.store.put(self.record(run))
        return True

    def record(self, run: ResponseRun) -> StoredResponse:
        """Return the current state of ``run`` for the store."""
        prepared, resource, reply = run.prepared, run.resource, run.output.reply
        return StoredResponse(
            id=prepared.id,
            owner=prepared.owner,
            created_at=time.time(),
            expires_at=time.time() + self._seconds_kept,
            status=resource.status,
            background=bool(prepared.request.background),
            previous_id=prepared.request.previous_response_id,
            body=resource.body(),
            input=prepared.input_items(),
            text=reply.text,
            ids=list(reply.ids),
        )

    async def _maintain(self) -> None:
        beats = 0
        while True:
            await asyncio.sleep(_BEAT_S)
            beats += 1
            try:
                await self._beat(clean=beats % _CLEAN_EVERY == 0)
            except Exception:
                _log.exception("store_maintenance_failed")  # retried at the next beat

    async def _beat(self, *, clean: bool) -> None:
        if running := self.background.ids:
            await self._maintenance.heartbeat()
            for response_id in await self._maintenance.ended(running):
                await self.background.cancel(response_id)
        await self._maintenance.fail_interrupted(cut)
        if clean:
            await self._clean()

    async def _clean(self) -> None:
        await self._maintenance.expire()
        await self._maintenance.shrink()
        await self.replies.clean()
        for clean in self.cleaners:
            await clean()


async def _responses_of(request: Request) -> Responses:
    responses: Responses = request.app.state.responses
    return responses


CurrentResponses = Annotated[Responses, Depends(_responses_of)]
