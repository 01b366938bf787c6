"""All that the routes need: the store, its upkeep, and what runs in the background."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Final

import structlog
from fastapi import Depends, Request

from service.api.limits import Drain
from service.api.responses.resource import cut
from service.api.responses.run import Background, Run
from service.server.settings import Settings
from service.store.maintenance import Upkeep
from service.store.replies import ReplyStore
from service.store.responses import ResponseStore, StoredResponse

_BEAT_S: Final = 5.0
_CLEAN_EVERY: Final = 12
"""Beats between two cleanings."""
_DAY_S: Final = 86_400

_log = structlog.get_logger(__name__)


class Responses:
    """Stored and running responses of one server, from start to stop.

    Raises:
        StoreError: the store's URL can't be used.
    """

    def __init__(self, settings: Settings, drain: Drain) -> None:
        self.store = ResponseStore(settings.store_url)
        self.replies = ReplyStore(
            self.store.engine, days=settings.store_days, max_bytes=settings.store_max_bytes // 8
        )
        self.background = Background(self.store, settings.max_background_responses, drain)
        self._settings = settings
        self._upkeep = Upkeep(self.store, max_bytes=settings.store_max_bytes)
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the store, and end what an earlier server left running.

        Raises:
            StoreError: it can't be opened.
        """
        await self.store.start()
        if count := await self._upkeep.fail_cut(cut):
            _log.warning("responses_cut", count=count)
        await self._clean()
        self._loop = asyncio.create_task(self._keep_up())

    async def stop(self) -> None:
        """End what still runs in the background, as failed; close the store."""
        if self._loop is not None:
            await self.background.stop()
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        await self.store.stop()

    async def keep(self, run: Run) -> bool:
        """Store a response that is over; False if somebody else ended it."""
        body = run.resource.body()
        if run.job.request.background:
            return await self.store.change(
                run.job.id,
                status=run.resource.status,
                body=body,
                text=run.reply.text,
                ids=run.reply.ids,
            )
        if run.job.request.stored:
            await self.store.put(self.record(run))
        return True

    def record(self, run: Run) -> StoredResponse:
        """What is stored of ``run`` now."""
        job, resource = run.job, run.resource
        return StoredResponse(
            id=job.id,
            owner=job.owner,
            created_at=time.time(),
            expires_at=time.time() + self._settings.store_days * _DAY_S,
            status=resource.status,
            background=bool(job.request.background),
            previous_id=job.request.previous_response_id,
            body=resource.body(),
            input=job.input_items(),
            text=run.reply.text,
            ids=list(run.reply.ids),
        )

    async def _keep_up(self) -> None:
        beats = 0
        while True:
            await asyncio.sleep(_BEAT_S)
            beats += 1
            try:
                await self._beat(clean=beats % _CLEAN_EVERY == 0)
            except Exception:
                _log.exception("store_upkeep_failed")  # the next beat tries again

    async def _beat(self, *, clean: bool) -> None:
        if running := self.background.ids:
            await self._upkeep.beat()
            for response_id in await self._upkeep.ended(running):
                await self.background.cancel(response_id)
        await self._upkeep.fail_cut(cut)
        if clean:
            await self._clean()

    async def _clean(self) -> None:
        await self._upkeep.expire()
        await self._upkeep.shrink()
        await self.replies.clean()


async def _responses_of(request: Request) -> Responses:
    responses: Responses = request.app.state.responses
    return responses


async def _owner_of(request: Request) -> str:
    """Whose responses a request may see: those of its API key, or all where no key is asked for."""
    key = request.scope.get("api_key")
    return "" if key is None else str(key.digest.hex())


CurrentResponses = Annotated[Responses, Depends(_responses_of)]
Owner = Annotated[str, Depends(_owner_of)]
