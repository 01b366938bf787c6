"""Make one response: run its episode, number its events, and store it when it is over."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import structlog

from service.api.errors import ApiError, as_api_error
from service.api.functions.hermes import CallError
from service.api.responses.job import ResponseJob
from service.api.responses.resource import Resource
from service.api.run import run_episodes
from service.api.telemetry.traces import Attributes
from service.api.wire import Json
from service.events import Finished

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
