"""State of a running server, and the entry point through which every route runs its episodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from opentelemetry.trace import NoOpTracer, Tracer

from service.api.auth import ApiKey
from service.api.errors import ApiError
from service.api.limits import Admission, Drain, EpisodeMeter, Quotas
from service.api.seal import Seal
from service.api.telemetry.metrics import Metrics
from service.api.telemetry.tracing import Attributes, RequestTrace
from service.engines.base import Engine, InvalidRequestError
from service.episode.events import EpisodeEvent, Sampled
from service.episode.runner import EpisodeRunner
from service.store.replies import ReplyStore
from service.tools.mcp.hub import McpHub

T = TypeVar("T")
EpisodeStream = AsyncGenerator[EpisodeEvent, None]
Events = AsyncGenerator[tuple[int, EpisodeEvent], None]
"""Events of several episodes, each with the index of its episode."""

_AHEAD = 32
"""Items that the episodes of a request may be ahead of a slow client, which must not fill the memory."""


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Settings that the routes read. None in a limit means the checkpoint's own value."""

    max_n: int
    """Most choices (``n``) in one request."""
    max_turns: int | None
    run_limit_s: float | None
    """Most seconds that one flush may run."""
    max_output_tokens: int | None
    """Most tokens of a flush's output."""
    max_concurrent_episodes: int
    keep_alive_s: float
    """Seconds without data after which a stream gets an SSE comment."""
    reload_root: Path | None
    """Directory that ``POST /admin/reload`` may load checkpoints from; None disables it."""
    tool_wait_s: float = 60.0
    """Seconds that one flush may wait for tools, beside the run limit."""


@dataclass(slots=True)
class Server:
    """State of one running server; ``app.state.server`` from start to stop."""

    runner: EpisodeRunner
    settings: ApiSettings
    admission: Admission
    metrics: Metrics
    quotas: Quotas
    started_at: int
    """Unix time."""
    tracer: Tracer = field(default_factory=NoOpTracer)
    drain: Drain = field(default_factory=Drain)
    seal: Seal = field(default_factory=Seal)
    """Seals the thoughts that clients keep."""
    reloading: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Locked while new weights are loaded."""
    notice: str | None = None
    """Notice for everyone who talks to the model, shown by the playground and by ``ih-grpo chat``."""
    mcp: McpHub = field(default_factory=McpHub)
    """MCP servers, whose tools code can call."""

    @property
    def engine(self) -> Engine:
        return self.runner.engine

    @property
    def model_name(self) -> str:
        """Name of the model in requests."""
        return self.engine.model_name

    @property
    def model_names(self) -> tuple[str, ...]:
        """All names that requests may use: the model itself, then its adapters."""
        return (self.model_name, *self.engine.adapters)

    def check_model(self, name: str) -> None:
        """Raise ApiError 404 unless ``name`` is a served model."""
        if name not in self.model_names:
            known = ", ".join(repr(known) for known in self.model_names)
            message = f"The model '{name}' does not exist. This server has {known}."
            raise ApiError(404, message, param="model", code="model_not_found")

    @asynccontextmanager
    async def run_episodes(
        self,
        make_episodes: Callable[[], Sequence[EpisodeStream]],
        *,
        count: int,
        operation: str,
        model: str,
        owner: str,
        prompt_tokens: int,
        runs_code: bool = False,
        is_stored: bool = False,
        attributes: Attributes | None = None,
        schema_param: str | None = None,
    ) -> AsyncGenerator[Events, None]:
        """Run the episodes of one request: admitted, counted, timed and traced.

        Waits for admission, then yields the events of all episodes. Leaving the context ends the episodes.

        Args:
            make_episodes: called once after admission.
            count: number of episodes.
            operation: name of the request's span, such as ``chat``.
            model: model name in the request.
            owner: key of the request, whose quotas apply.
            prompt_tokens: length of their common prompt, or of all prompts together.
            runs_code: the episodes may run code.
            is_stored: the reply is stored as a response.
            attributes: more attributes of the span.
            schema_param: request field that the constraint on the text comes from.

        Raises:
            ApiError: 429 if a quota is used up or no place became free in time; 400 if the engine can't
                enforce the constraint.
        """
        arrived = time.monotonic()
        async with AsyncExitStack() as stack:
            await self.quotas.check(owner, tokens=True, code=runs_code, storage=is_stored)
            await stack.enter_async_context(self.admission.admit(count))
            meter = self.quotas.meter(owner, model, prompt_tokens)
            stack.push_async_callback(meter.close)
            self.metrics.queue_s.observe(time.monotonic() - arrived)
            self.metrics.prompt_tokens.inc(prompt_tokens)
            trace = None
            if not isinstance(self.tracer, NoOpTracer):
                trace = RequestTrace(
                    self.tracer, operation, model, prompt_tokens=prompt_tokens, attributes=attributes
                )
            with trace or nullcontext():
                observed = _observed(merged(make_episodes()), trace, self.metrics, meter, arrived)
                try:
                    async with aclosing(observed) as events:
                        yield events
                except InvalidRequestError as error:
                    message = f"'{schema_param}': {error}." if schema_param else f"{error}."
                    raise ApiError(400, message, param=schema_param, code="invalid_value") from error


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Yield the items of all ``streams`` with their stream's index, in order of arrival.

    An error in one stream ends all of them; so does closing the generator.
    """
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


async def _observed(
    events: Events, trace: RequestTrace | None, metrics: Metrics, meter: EpisodeMeter, arrived: float
) -> Events:
    times = _TokenTimes(metrics, arrived)
    async with aclosing(events):
        async for index, event in events:
            times.add(index, event)
            metrics.observe(event)
            meter.add(index, event)
            if trace is not None:
                trace.add(index, event)
            yield index, event


class _TokenTimes:
    """Time to the first token of a request, and between the tokens of a turn."""

    def __init__(self, metrics: Metrics, arrived: float) -> None:
        self._metrics = metrics
        self._arrived = arrived
        self._last: dict[int, float] = {}
        self._has_tokens = False

    def add(self, index: int, event: EpisodeEvent) -> None:
        if not isinstance(event, Sampled):
            self._last.pop(index, None)  # a pause for code is not a time between tokens
            return
        now = time.monotonic()
        if not self._has_tokens:
            self._metrics.first_token_s.observe(now - self._arrived)
            self._has_tokens = True
        before = self._last.get(index)
        if before is not None and event.chunk.ids:
            self._metrics.inter_token_s.observe((now - before) / len(event.chunk.ids))
        self._last[index] = now


async def server_of(request: Request) -> Server:  # async, so that FastAPI doesn't run it in a thread
    server: Server = request.app.state.server
    return server


async def owner_of(request: Request) -> str:
    """Return the owner of stored responses: the request's API key, by its hash; empty without keys."""
    key: ApiKey | None = request.scope.get("api_key")
    return "" if key is None else key.owner


async def containers_of(request: Request) -> Any:
    """Return the containers of this server, whose type is in `service.api.files.choice.CurrentContainers`."""
    return request.app.state.containers


async def replies_of(request: Request) -> ReplyStore:
    replies: ReplyStore = request.app.state.responses.replies
    return replies


CurrentServer = Annotated[Server, Depends(server_of)]
CurrentReplies = Annotated[ReplyStore, Depends(replies_of)]
"""Stored token ids of earlier replies."""
Owner = Annotated[str, Depends(owner_of)]
