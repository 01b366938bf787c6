"""Run responses: in the foreground, or in the background with their events in a log.

A `ResponseRun` runs the episode of one response, numbers its events and stores it at the end. The events of a
background response are written once, to an `EventLog`, and can be read by any number of clients of any
server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus

import structlog

from service.api.chat.suspension import Suspensions
from service.api.errors import ApiError, as_api_error
from service.api.limits import Drain
from service.api.responses.output import response_usage
from service.api.responses.prepare import PreparedResponse
from service.api.responses.resource import STOPPED, Resource
from service.api.telemetry.tracing import Attributes
from service.common.json import Json
from service.deferral.episode import Outcome
from service.episode.accumulator import Usage
from service.episode.events import Finished, FlushSuspended
from service.episode.tool_parser import CallError
from service.store.responses import ResponseStore, StoredResponse

Stream = AsyncGenerator[Json, None]

_log = structlog.get_logger(__name__)


class ResponseRun:
    """One response in progress.

    Args:
        prepared: the prepared request.
        status: ``queued`` for a background response, else ``in_progress``.
        store: stores the response at the end, before its last event. Returns False if the response was ended
            elsewhere in the meantime; the last event is then not sent.
        suspensions: keeps the episode if its code waits for the client.
    """

    def __init__(
        self,
        prepared: PreparedResponse,
        status: str,
        store: Callable[[ResponseRun], Awaitable[bool]],
        suspensions: Suspensions,
    ) -> None:
        self._suspensions = suspensions
        self.prepared = prepared
        self.output = prepared.output()
        self.resource = Resource(prepared, status, output=self.output.output.items)
        self._store = store
        self._next_number = 0
        self._admitted = False
        self._usage: Usage | None = None
        """Set when the episode is suspended: the next request may continue it at any time."""

    @property
    def is_running(self) -> bool:
        """The episode was admitted and has not ended."""
        return self._admitted and self.resource.status == "in_progress"

    @property
    def has_ended(self) -> bool:
        """The status is final, although the response may not be stored yet."""
        return self.resource.status not in ("queued", "in_progress")

    def lifecycle(self, kind: str) -> Json:
        """Return the event ``response.<kind>`` with the current response."""
        return self._numbered({"type": f"response.{kind}", "response": self.resource.body()})

    async def events(self) -> Stream:
        """Run the episode and yield all events up to the last one.

        Raises:
            ApiError: 429 before the first event if no place became free in time.
            EngineError: the engine failed.
        """
        prepared, chat, live = self.prepared, self.prepared.chat, self.prepared.live
        running = chat.server.run_episodes(
            partial(live.streams, prepared.answers, prepared.id),
            count=1,
            operation="responses",
            model=prepared.request.model,
            owner=prepared.owner,
            prompt_tokens=0 if live.is_continued else len(chat.prompt_ids),
            runs_code=chat.request.deferred,
            is_stored=prepared.request.stored,
            attributes=self._attributes(),
            schema_param=prepared.schema_param,
        )
        outcome: Outcome | None = None
        suspended: Json | None = None
        async with live.acquired(self._suspensions, prepared.id), running as episode:
            self._admitted = True
            if self.resource.status != "queued":
                yield self.lifecycle("created")
            self.resource.status = "in_progress"
            yield self.lifecycle("in_progress")
            for output_event in self.output.begin():
                yield self._numbered(output_event)
            async for _, event in episode:
                try:
                    output_events = self.output.add(event)
                except CallError as error:
                    raise ApiError(400, str(error), code="tool_use_failed") from None
                for output_event in output_events:
                    yield self._numbered(output_event)
                if isinstance(event, Finished):
                    outcome = event.outcome
                elif isinstance(event, FlushSuspended):
                    self._usage = live.usage()
                    await self._suspensions.add(live)
                    suspended = self._suspensions.as_json(live)
        # Together, because other requests read the resource.
        self._set_usage()
        if suspended is not None:
            self.resource.suspend(suspended)
        elif outcome is not None:
            self.resource.finish(outcome)
            self.resource.final_answer = self.output.reply.final_answer
        if await self._store(self):
            yield self.lifecycle(self.resource.status)

    async def safe_events(self) -> Stream:
        """Yield `events`; an error after admission becomes ``response.failed`` instead of being raised."""
        try:
            async with aclosing(self.events()) as events:
                async for event in events:
                    yield event
        except Exception as error:
            if not self._admitted:
                raise
            api_error = as_api_error(error)
            if api_error.status >= 500:
                _log.exception("response_failed")
            for event in self._abandon():
                yield event
            self.resource.fail(api_error)
            if await self._store(self):
                yield self.lifecycle("failed")

    async def stop(self, change: Callable[[Resource], None]) -> list[Json]:
        """End the response early with its output so far, and return the last events.

        Args:
            change: sets the final status.
        """
        events = self._abandon()
        change(self.resource)
        if await self._store(self):
            # OpenAI has no event for a response that was cancelled.
            events.append(self.lifecycle("failed" if self.resource.status == "failed" else "incomplete"))
        return events

    def _abandon(self) -> list[Json]:
        events = self.output.abandon() if self.output.output.items else []
        self._set_usage()
        return [self._numbered(event) for event in events]

    def _set_usage(self) -> None:
        self.resource.usage = response_usage(self._usage or self.prepared.live.usage())

    def _numbered(self, event: Json) -> Json:
        number, self._next_number = self._next_number, self._next_number + 1
        return {**event, "sequence_number": number}

    def _attributes(self) -> Attributes:
        request = self.prepared.request
        attributes = {f"ih_grpo.metadata.{name}": value for name, value in (request.metadata or {}).items()}
        return {"ih_grpo.request.id": self.prepared.id, "ih_grpo.deferred": request.runs_code, **attributes}


_WRITE_EVERY_S = 0.5
_WRITE_EVENTS = 64
"""Batches of events are written to the store at this interval, or earlier at this size."""


class EventLog:
    """Events of one response: the latest in memory, all others in the store.

    Args:
        store: the events are written to it in batches.
        response_id: id of the response.
    """

    def __init__(self, store: ResponseStore, response_id: str) -> None:
        self._store = store
        self._id = response_id
        self._tail: list[Json] = []
        self._stored = -1
        self._written_at = time.monotonic()
        self._is_closed = False
        self._changed = asyncio.Event()
        self._lock = asyncio.Lock()
        self._writing: asyncio.Future[None] | None = None

    async def add(self, event: Json) -> None:
        """Append an event."""
        self._tail.append(event)
        self._notify()
        if len(self._tail) >= _WRITE_EVENTS or time.monotonic() - self._written_at >= _WRITE_EVERY_S:
            # A cancelled caller must not leave a batch that may or may not be stored.
            self._writing = asyncio.ensure_future(self._write())
            await asyncio.shield(self._writing)

    async def close(self) -> None:
        """Close the log after its last event."""
        try:
            await self._write()
        finally:
            self._is_closed = True
            self._notify()

    async def read(self, after: int) -> AsyncGenerator[Json, None]:
        """Yield the events with numbers above ``after``, including future ones."""
        while True:
            is_closed, changed = self._is_closed, self._changed
            behind = after < self._stored
            events = await self._store.events_after(self._id, after) if behind else self._tail
            for event in [event for event in events if number(event) > after]:
                after = number(event)
                yield event
            if behind and events:
                continue
            if is_closed or behind:  # the stored events are missing: the response was deleted
                return
            if after >= self._last():
                await changed.wait()

    def _last(self) -> int:
        return number(self._tail[-1]) if self._tail else self._stored

    async def _write(self) -> None:
        async with self._lock:
            batch = list(self._tail)
            self._written_at = time.monotonic()
            if batch:
                await self._store.add_events(self._id, batch)
                self._tail = self._tail[len(batch) :]
                self._stored = number(batch[-1])

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def number(event: Json) -> int:
    """Return the event's sequence number."""
    value = event["sequence_number"]
    assert isinstance(value, int)  # noqa: S101
    return value


_POLL_S = 0.5
_MAX_LATE_POLLS = 4
"""Polls to wait for the last event after the response itself has ended."""
_LAST_EVENTS = ("response.completed", "response.failed", "response.incomplete")


@dataclass(slots=True)
class _Entry:
    run: ResponseRun
    log: EventLog
    task: asyncio.Task[None]
    on_stop: Callable[[Resource], None]
    """Sets the final status if the task is cancelled."""


class Background:
    """Background responses that run on this server.

    Args:
        store: contains each response from its start.
        limit: maximum number, including those that wait for admission.
        drain: counts them, so that a shutdown waits for them.
    """

    def __init__(self, store: ResponseStore, limit: int, drain: Drain) -> None:
        self._store = store
        self._limit = limit
        self._drain = drain
        self._entries: dict[str, _Entry] = {}

    @property
    def ids(self) -> list[str]:
        """Ids of the responses that run on this server."""
        return list(self._entries)

    def check_room(self) -> None:
        """Raise ApiError 429 if the limit is reached."""
        if len(self._entries) >= self._limit:
            raise ApiError(429, "Too many background responses are running.", retry_after_s=5)

    def start(self, run: ResponseRun) -> None:
        """Start ``run`` as a task. The response must be in the store."""
        log = EventLog(self._store, run.prepared.id)
        task = asyncio.create_task(self._run(run, log))
        self._entries[run.prepared.id] = _Entry(run, log, task, _shut_down)
        self._drain.active += 1

    def read(self, response_id: str, owner: str, after: int) -> AsyncGenerator[Json, None]:
        """Yield the events of a response above ``after``, on whichever server it runs or ran."""
        entry = self._entries.get(response_id)
        return self._poll(response_id, owner, after) if entry is None else entry.log.read(after)

    async def cancel(self, response_id: str) -> bool:
        """Cancel a response of this server and wait for its end. Return False if it doesn't run here."""
        return await self._stop(response_id, Resource.cancel)

    async def stop(self) -> None:
        """End all running responses as failed."""
        await asyncio.gather(*(self._stop(response_id, _shut_down) for response_id in self.ids))

    def body(self, response_id: str) -> Json | None:
        """Return the current response if it runs on this server."""
        entry = self._entries.get(response_id)
        return None if entry is None else entry.run.resource.body()

    async def _stop(self, response_id: str, on_stop: Callable[[Resource], None]) -> bool:
        if (entry := self._entries.get(response_id)) is None:
            return False
        entry.on_stop = on_stop
        await asyncio.sleep(0)  # a task cancelled before its first step would not run its handler
        if not entry.run.has_ended:  # else it is about to be stored
            entry.task.cancel()
        await asyncio.gather(entry.task, return_exceptions=True)
        return True

    async def _run(self, run: ResponseRun, log: EventLog) -> None:
        try:
            try:
                for kind in ("created", "queued"):
                    await log.add(run.lifecycle(kind))
                await self._log_events(run, log)
            except asyncio.CancelledError:
                for event in await run.stop(self._entries[run.prepared.id].on_stop):
                    await log.add(event)
        except Exception:
            _log.exception("background_response_lost", response=run.prepared.id)  # the store is unavailable
        finally:
            try:
                await log.close()
            finally:
                del self._entries[run.prepared.id]
                self._drain.active -= 1

    async def _log_events(self, run: ResponseRun, log: EventLog) -> None:
        """Run the response once it is admitted, however long that takes: it was accepted."""
        while True:
            try:
                async with aclosing(run.safe_events()) as events:
                    async for event in events:
                        await log.add(event)
                        if event["type"] == "response.in_progress":
                            await self._store.change(
                                run.prepared.id, status="in_progress", body=run.resource.body()
                            )
                return
            except ApiError as error:
                if error.status != HTTPStatus.TOO_MANY_REQUESTS:
                    raise
                await asyncio.sleep(error.retry_after_s or 1.0)

    async def _poll(self, response_id: str, owner: str, after: int) -> AsyncGenerator[Json, None]:
        """Yield the events of a response that has ended or runs on another server."""
        polls_left = _MAX_LATE_POLLS
        while (response := await self._store.get(response_id, owner)) is not None:
            for event in await self._store.events_after(response_id, after):
                after = number(event)
                yield event
            if not response.is_running:
                last = await self._store.last_event(response_id)
                if last is not None and last["type"] in _LAST_EVENTS:
                    return
                if not polls_left:  # its server died before the last event
                    yield _end(response, -1 if last is None else number(last))
                    return
                polls_left -= 1
            await asyncio.sleep(_POLL_S)


def _end(response: StoredResponse, last: int) -> Json:
    """Return the last event of a response whose server never sent it."""
    kind = response.status if response.status in ("completed", "failed") else "incomplete"
    return {"type": f"response.{kind}", "response": response.body, "sequence_number": last + 1}


def _shut_down(resource: Resource) -> None:
    resource.status, resource.error = "failed", STOPPED
