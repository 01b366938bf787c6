"""Run the episodes of one request: admitted, counted, timed and traced. Every API runs them through here.

Run several event streams at once and read them as one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

from service.api.errors import ApiError
from service.api.state import Server
from service.api.telemetry.metrics import Metrics
from service.api.telemetry.tracing import Attributes, RequestTrace
from service.engines.base import InvalidRequestError
from service.episode.events import EpisodeEvent, Sampled

T = TypeVar("T")

_AHEAD = 32
"""Items that the streams may be ahead of their reader: a slow client must not fill the memory."""


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Items of all ``streams``, each with its stream's index. An error of one ends all; so does closing."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for item in only:
                yield 0, item
        return
    queue: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue(_AHEAD)
    tasks = [asyncio.create_task(_pump(index, stream, queue)) for index, stream in enumerate(streams)]
    left = len(tasks)
    try:
        while left:
            match await queue.get():
                case None:
                    left -= 1
                case Exception() as error:
                    raise error
                case (index, item):
                    yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    index: int, stream: AsyncGenerator[T, None], queue: asyncio.Queue[tuple[int, T] | Exception | None]
) -> None:
    try:
        async with aclosing(stream):
            async for item in stream:
                await queue.put((index, item))
    except Exception as error:
        await queue.put(error)
    else:
        await queue.put(None)


Events = AsyncGenerator[tuple[int, EpisodeEvent], None]


@asynccontextmanager
async def run_episodes(
    server: Server,
    episodes: Callable[[], Sequence[AsyncGenerator[EpisodeEvent, None]]],
    *,
    count: int,
    operation: str,
    model: str,
    prompt_tokens: int,
    attributes: Attributes | None = None,
    schema_param: str | None = None,
) -> AsyncGenerator[Events, None]:
    """Wait for places, then give the events of all episodes, each with its episode's index.

    Leaving the context ends the episodes.

    Args:
        server: admits them.
        episodes: makes the episodes, once there are places.
        count: how many they are.
        operation: name of the request's span, as ``chat``.
        model: the name that the client asked for.
        prompt_tokens: length of their prompt.
        attributes: more for the span.
        schema_param: the client's field that a JSON schema for the engine comes from.

    Raises:
        ApiError: 429, there was no place; 400, the engine can't hold a reply to the schema.
    """
    arrived = time.monotonic()
    async with server.admission.admit(count):
        server.metrics.queue_s.observe(time.monotonic() - arrived)
        server.metrics.prompt_tokens.inc(prompt_tokens)
        trace = RequestTrace(
            server.tracer, operation, model, prompt_tokens=prompt_tokens, attributes=attributes
        )
        with trace:
            watched = _watched(merged(episodes()), trace, server.metrics, arrived)
            try:
                async with aclosing(watched) as events:
                    yield events
            except InvalidRequestError as error:
                told = f"'{schema_param}': {error}." if schema_param else f"{error}."
                raise ApiError(400, told, param=schema_param, code="invalid_value") from error


async def _watched(events: Events, trace: RequestTrace, metrics: Metrics, arrived: float) -> Events:
    times = _TokenTimes(metrics, arrived)
    async with aclosing(events):
        async for index, event in events:
            times.take(index, event)
            metrics.observe(event)
            trace.take(index, event)
            yield index, event


class _TokenTimes:
    """Time to the request's first token, and between the tokens of a turn."""

    def __init__(self, metrics: Metrics, arrived: float) -> None:
        self._metrics = metrics
        self._arrived = arrived
        self._last: dict[int, float] = {}
        self._any = False

    def take(self, index: int, event: EpisodeEvent) -> None:
        if not isinstance(event, Sampled):
            self._last.pop(index, None)  # a pause for code is no time between tokens
            return
        now = time.monotonic()
        if not self._any:
            self._metrics.first_token_s.observe(now - self._arrived)
            self._any = True
        before = self._last.get(index)
        if before is not None and event.chunk.ids:
            self._metrics.inter_token_s.observe((now - before) / len(event.chunk.ids))
        self._last[index] = now
