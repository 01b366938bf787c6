"""Responses that run on when nobody listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus

import structlog

from service.api.access.drain import Drain
from service.api.errors import ApiError
from service.api.responses.log import EventLog, number
from service.api.responses.resource import STOPPED, Resource
from service.api.responses.run import Run
from service.api.wire import Json
from service.store.records import StoredResponse
from service.store.responses import ResponseStore

_POLL_S = 0.5
_PATIENCE = 4
"""Looks that the last event may be late by, after the response itself is over."""
_LAST = ("response.completed", "response.failed", "response.incomplete")

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Entry:
    run: Run
    log: EventLog
    task: asyncio.Task[None]
    how: Callable[[Resource], None]
    """How it ends if it is stopped."""


class Background:
    """The background responses of this server.

    Args:
        store: has each of them from the beginning.
        limit: how many there may be, those that wait for their turn included.
        drain: waits for them when the server goes down.
    """

    def __init__(self, store: ResponseStore, limit: int, drain: Drain) -> None:
        self._store = store
        self._limit = limit
        self._drain = drain
        self._entries: dict[str, _Entry] = {}

    @property
    def ids(self) -> list[str]:
        """Those that run here."""
        return list(self._entries)

    def check_room(self) -> None:
        """Raises ApiError 429 if no more may be taken."""
        if len(self._entries) >= self._limit:
            raise ApiError(429, "Too many responses run in the background.", retry_after_s=5)

    def start(self, run: Run) -> None:
        """Let it run. It must be in the store."""
        log = EventLog(self._store, run.job.id)
        task = asyncio.create_task(self._run(run, log))
        self._entries[run.job.id] = _Entry(run, log, task, _shut_down)
        self._drain.active += 1

    def read(self, response_id: str, owner: str, after: int) -> AsyncGenerator[Json, None]:
        """The events of a response above ``after``, from wherever it runs or ran."""
        entry = self._entries.get(response_id)
        return self._poll(response_id, owner, after) if entry is None else entry.log.read(after)

    async def cancel(self, response_id: str) -> bool:
        """End one that runs here, and wait until it has; False if none does."""
        return await self._stop(response_id, Resource.cancel)

    async def stop(self) -> None:
        """End those that still run: they are failed, and say why."""
        await asyncio.gather(*(self._stop(response_id, _shut_down) for response_id in self.ids))

    def body(self, response_id: str) -> Json | None:
        """The response as it is now, if it runs here."""
        entry = self._entries.get(response_id)
        return None if entry is None else entry.run.resource.body()

    async def _stop(self, response_id: str, how: Callable[[Resource], None]) -> bool:
        if (entry := self._entries.get(response_id)) is None:
            return False
        entry.how = how
        await asyncio.sleep(0)  # a task that is cancelled before its first step would never see it
        entry.task.cancel()
        await asyncio.gather(entry.task, return_exceptions=True)
        return True

    async def _run(self, run: Run, log: EventLog) -> None:
        try:
            try:
                for kind in ("created", "queued"):
                    await log.add(run.lifecycle(kind))
                await self._tell(run, log)
            except asyncio.CancelledError:
                for event in await run.stop(self._entries[run.job.id].how):
                    await log.add(event)
        except Exception:
            _log.exception("background_response_lost", response=run.job.id)  # the store is away
        finally:
            try:
                await log.close()
            finally:
                del self._entries[run.job.id]
                self._drain.active -= 1

    async def _tell(self, run: Run, log: EventLog) -> None:
        """Run it when there is a place, however long that takes: it has been promised."""
        while True:
            try:
                async with aclosing(run.told()) as events:
                    async for event in events:
                        await log.add(event)
                        if event["type"] == "response.in_progress":
                            await self._store.change(
                                run.job.id, status="in_progress", body=run.resource.body()
                            )
                return
            except ApiError as error:
                if error.status != HTTPStatus.TOO_MANY_REQUESTS:
                    raise
                await asyncio.sleep(error.retry_after_s or 1.0)

    async def _poll(self, response_id: str, owner: str, after: int) -> AsyncGenerator[Json, None]:
        """The events of a response that is over, or runs in another server."""
        patience = _PATIENCE
        while (response := await self._store.get(response_id, owner)) is not None:
            for event in await self._store.events_after(response_id, after):
                after = number(event)
                yield event
            if not response.is_running:
                last = await self._store.last_event(response_id)
                if last is not None and last["type"] in _LAST:
                    return
                if not patience:  # its server died before it could tell the end
                    yield _end(response, -1 if last is None else number(last))
                    return
                patience -= 1
            await asyncio.sleep(_POLL_S)


def _end(response: StoredResponse, last: int) -> Json:
    """The last event of a response whose own server never told it."""
    kind = response.status if response.status in ("completed", "failed") else "incomplete"
    return {"type": f"response.{kind}", "response": response.body, "sequence_number": last + 1}


def _shut_down(resource: Resource) -> None:
    resource.status, resource.error = "failed", STOPPED
