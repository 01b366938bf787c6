"""Make one response: run its episode, number its events, and store it when it is over.

The events of a response that runs in the background: written once, read by any number, from anywhere.

Responses that run on when nobody listens.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus

import structlog

from service.api.errors import ApiError, as_api_error
from service.api.limits import Drain
from service.api.responses.prepare import ResponseJob
from service.api.responses.resource import STOPPED, Resource
from service.api.run import run_episodes
from service.api.telemetry.tracing import Attributes
from service.api.tools.parser import CallError
from service.common.json import Json
from service.episode.events import Finished
from service.store.responses import ResponseStore, StoredResponse

Stream = AsyncGenerator[Json, None]

_log = structlog.get_logger(__name__)


class Run:
    """A response in the making.

    Args:
        job: what to do.
        status: ``queued`` for one in the background, else ``in_progress``.
        ended: stores the response when it is over, before its last event is told; False if it was ended by
            somebody else meanwhile, and the last event is then not told.
    """

    def __init__(self, job: ResponseJob, status: str, ended: Callable[[Run], Awaitable[bool]]) -> None:
        self.job = job
        self.reply = job.reply()
        self.resource = Resource(job, status, output=self.reply.output.items)
        self._ended = ended
        self._next = 0
        self._admitted = False

    @property
    def is_running(self) -> bool:
        """It has its place, and no end."""
        return self._admitted and self.resource.status == "in_progress"

    def lifecycle(self, kind: str) -> Json:
        """The event ``response.<kind>``, with the response as it is now."""
        return self._numbered({"type": f"response.{kind}", "response": self.resource.body()})

    async def events(self) -> Stream:
        """All events from ``response.in_progress`` to the last.

        Raises:
            ApiError: 429, there was no place; nothing was told.
            EngineError: the engine failed.
        """
        job, chat = self.job, self.job.chat
        running = run_episodes(
            chat.server,
            chat.episodes,
            count=1,
            operation="responses",
            model=job.request.model,
            prompt_tokens=len(chat.prompt_ids),
            attributes=self._attributes(),
            schema_param=job.schema_param,
        )
        async with running as episode:
            self._admitted = True
            if self.resource.status != "queued":
                yield self.lifecycle("created")
            self.resource.status = "in_progress"
            yield self.lifecycle("in_progress")
            async for _, event in episode:
                try:
                    told = self.reply.take(event)
                except CallError as error:
                    raise ApiError(400, str(error), code="tool_use_failed") from None
                for item in told:
                    yield self._numbered(item)
                if isinstance(event, Finished):
                    self.resource.finish(event.outcome)
                    self.resource.final_answer = self.reply.final_answer
        self._count()
        if await self._ended(self):
            yield self.lifecycle(self.resource.status)

    async def told(self) -> Stream:
        """As `events`, but what fails once there is a place is told by ``response.failed`` and not raised."""
        try:
            async with aclosing(self.events()) as events:
                async for event in events:
                    yield event
        except Exception as error:
            if not self._admitted:
                raise
            told = as_api_error(error)
            if told.status >= 500:
                _log.exception("response_failed")
            for event in self._stopped():
                yield event
            self.resource.fail(told)
            if await self._ended(self):
                yield self.lifecycle("failed")

    async def stop(self, change: Callable[[Resource], None]) -> list[Json]:
        """End it in the middle, with what it has so far; gives the last events.

        Args:
            change: says how it ended.
        """
        told = self._stopped()
        change(self.resource)
        if await self._ended(self):
            # OpenAI has no event of its own for a response that was cancelled.
            told.append(self.lifecycle("failed" if self.resource.status == "failed" else "incomplete"))
        return told

    def _stopped(self) -> list[Json]:
        told = [self._numbered(item) for item in self.reply.abandon()] if self.reply.output.items else []
        self._count()
        return told

    def _count(self) -> None:
        self.resource.usage = self.reply.usage(len(self.job.chat.prompt_ids))

    def _numbered(self, event: Json) -> Json:
        number, self._next = self._next, self._next + 1
        return {**event, "sequence_number": number}

    def _attributes(self) -> Attributes:
        request = self.job.request
        told = {f"ih_grpo.metadata.{name}": value for name, value in (request.metadata or {}).items()}
        return {"ih_grpo.request.id": self.job.id, "ih_grpo.deferred": request.runs_code, **told}


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


_POLL_S = 0.5
_PATIENCE = 4
"""Looks that the last event may be late by, after the response itself is over."""
_LAST = ("response.completed", "response.failed", "response.incomplete")

_background_log = structlog.get_logger(__name__)


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
            _background_log.exception("background_response_lost", response=run.job.id)  # the store is away
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
