"""Limits on requests: draining before a shutdown, admission of episodes, and rates and quotas per API key."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.auth import ApiKey, KeyQuota
from service.api.errors import INSUFFICIENT_QUOTA, ApiError
from service.api.telemetry.metrics import Metrics
from service.episode.events import (
    AnswerStarted,
    EpisodeEvent,
    FlushFinished,
    FlushStarted,
    Observed,
    Sampled,
)
from service.episode.stop_strings import StopStringHit
from service.store.usage import DAY_S, Consumption, UsageStore, day_start, next_month

_log = structlog.get_logger(__name__)
RETRY_AFTER_S = 5
COUNTED = ("/v1/", "/tokenize", "/detokenize")
"""Prefixes of the paths that do work for a client."""


class Drain:
    """State of a shutdown: whether it has begun, and how much is still running."""

    def __init__(self) -> None:
        self.draining = False
        self.active = 0
        """Requests in flight and background work; callers add and subtract."""

    def begin(self) -> None:
        """Reject new requests from now on."""
        self.draining = True

    @property
    def done(self) -> bool:
        """Nothing is running."""
        return self.active == 0


class Draining:
    """ASGI middleware that counts requests below ``/v1/`` and rejects new ones with 503 while draining."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(COUNTED):
            await self._app(scope, receive, send)
            return
        if self._drain.draining:
            error = ApiError(
                503, "The server is shutting down.", code="server_going_down", retry_after_s=RETRY_AFTER_S
            )
            # A retry must open a new connection, which reaches another server.
            await error.response({"Connection": "close"})(scope, receive, send)
            return
        self._drain.active += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._drain.active -= 1


@dataclass(slots=True, eq=False)
class _Waiter:
    episodes: int
    admitted: asyncio.Event = field(default_factory=asyncio.Event)


class Admission:
    """First-come, first-served admission of episodes: a request with ``n`` choices takes ``n`` places.

    Args:
        limit: maximum number of running episodes.
        queue: maximum number of waiting episodes.
        timeout_s: maximum wait in seconds.
    """

    def __init__(self, limit: int, queue: int, timeout_s: float) -> None:
        self.running = 0
        self._limit = limit
        self._queue = queue
        self._timeout_s = timeout_s
        self._waiters: deque[_Waiter] = deque()

    @property
    def waiting(self) -> int:
        """Number of waiting episodes."""
        return sum(waiter.episodes for waiter in self._waiters)

    @asynccontextmanager
    async def admit(self, episodes: int = 1) -> AsyncGenerator[None, None]:
        """Take places for ``episodes`` of one request, and release them at the end.

        Raises:
            ApiError: 400 if they exceed the limit, 429 if the queue is full or the wait timed out.
        """
        if episodes > self._limit:
            raise ApiError(
                400, f"'n': at most {self._limit} episodes can run concurrently on this server", param="n"
            )
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
            raise self._rejection("The server is busy and its queue is full.")
        waiter = _Waiter(episodes)
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(self._timeout_s):
                await waiter.admitted.wait()
        except BaseException as error:
            if waiter.admitted.is_set():  # admitted at the moment of the timeout
                self.running -= episodes
            else:
                self._waiters.remove(waiter)
            self._wake()
            if isinstance(error, TimeoutError):
                raise self._rejection("The server is busy and no place became free in time.") from None
            raise

    def _wake(self) -> None:
        while self._waiters and self.running + self._waiters[0].episodes <= self._limit:
            waiter = self._waiters.popleft()
            self.running += waiter.episodes
            waiter.admitted.set()

    def _rejection(self, message: str) -> ApiError:
        return ApiError(429, message, retry_after_s=min(self._timeout_s, 5.0))


class KeyLimits:
    """ASGI middleware, behind `service.api.auth.ApiKeys`, that limits requests below ``/v1/`` per key.

    Responses report the limit and its remainder in OpenAI's ``x-ratelimit-*`` headers.

    Args:
        app: the next application.
        metrics: counts rejected requests.
        requests_per_minute: default for keys without their own limit; None for no limit.
        concurrency: default for concurrent requests; a stream counts until its end.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, *, requests_per_minute: int | None, concurrency: int | None
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._requests_per_minute = requests_per_minute
        self._concurrency = concurrency
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._running: Counter[bytes] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key: ApiKey | None = scope.get("api_key")
        if scope["type"] != "http" or key is None or not scope["path"].startswith(COUNTED):
            await self._app(scope, receive, send)
            return
        limit = key.concurrency or self._concurrency
        if limit is not None and self._running[key.digest] >= limit:
            self._metrics.refused.labels("key_concurrency").inc()
            error = ApiError(429, f"This key allows {limit} concurrent requests.", retry_after_s=1)
            await error.response()(scope, receive, send)
            return
        self._running[key.digest] += 1
        try:
            await self._limit_rate(key, scope, receive, send)
        finally:
            self._running[key.digest] -= 1
            self._running += Counter()  # removes zeros

    async def _limit_rate(self, key: ApiKey, scope: Scope, receive: Receive, send: Send) -> None:
        rate = key.requests_per_minute or self._requests_per_minute
        if rate is None:
            await self._app(scope, receive, send)
            return
        item, name = RateLimitItemPerMinute(rate), key.digest.hex()
        passes = await self._limiter.hit(item, name)
        stats = await self._limiter.get_window_stats(item, name)
        resets_s = max(stats.reset_time - time.time(), 0.0)
        headers = {
            "x-ratelimit-limit-requests": str(rate),
            "x-ratelimit-remaining-requests": str(stats.remaining),
            "x-ratelimit-reset-requests": f"{resets_s:.3f}s",
        }

        def send_with_limits(message: Message) -> Awaitable[None]:  # not a coroutine, as in `RequestContext`
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            return send(message)

        if passes:
            await self._app(scope, receive, send_with_limits)
            return
        self._metrics.refused.labels("key_requests").inc()
        error = ApiError(429, f"This key allows {rate} requests per minute.", retry_after_s=max(resets_s, 1))
        await error.response()(scope, receive, send_with_limits)


@dataclass(frozen=True, slots=True)
class QuotaState:
    """One quota of a key, and the part of it that is used."""

    name: str
    """Field of `KeyQuota`."""
    limit: float
    used: float
    resets_at: int | None
    """Unix time at which the use starts from zero again; None for stored bytes."""


class Quotas:
    """Quotas of all keys, and the counts of what they use.

    A request is checked before its work and counted after it, also if its client has left. Requests in flight
    may therefore exceed a quota by their own cost.

    Args:
        usage: counts, shared by all servers of the store.
        keys: keys with their own quotas.
        default: quota of other keys, and of all clients together on a server without keys.
        metrics: counts rejected requests.
    """

    def __init__(
        self, usage: UsageStore, keys: Iterable[ApiKey], default: KeyQuota, metrics: Metrics
    ) -> None:
        self.usage = usage
        self.names = {key.owner: key.name for key in keys}
        self._default = default
        self._own = {key.owner: key.quota.or_default(default) for key in keys}
        self._metrics = metrics
        self._recording: set[asyncio.Task[None]] = set()

    def of(self, owner: str) -> KeyQuota:
        """Return the quota of ``owner``."""
        return self._own.get(owner, self._default)

    def stored_bytes_of(self, owner: str) -> int | None:
        """Return the limit of what is stored for ``owner``; None for no limit."""
        return self.of(owner).stored_bytes

    async def states(self, owner: str) -> list[QuotaState]:
        """Return the quotas that ``owner`` has."""
        quota = self.of(owner)
        states = []
        periods = (
            quota.tokens_per_day,
            quota.sandbox_seconds_per_day,
            quota.tokens_per_month,
            quota.sandbox_seconds_per_month,
        )
        if any(limit is not None for limit in periods):
            now = self.usage.clock()
            used = await self.usage.current(owner)
            ends = (day_start(now) + DAY_S, next_month(now))
            for period, spent, end in zip(("day", "month"), used, ends, strict=True):
                for kind, amount in (("tokens", spent.tokens), ("sandbox_seconds", spent.sandbox_seconds)):
                    name = f"{kind}_per_{period}"
                    if (limit := getattr(quota, name)) is not None:
                        states.append(QuotaState(name, limit, amount, end))
        if quota.stored_bytes is not None:
            stored = await self.usage.stored_bytes(owner)
            states.append(QuotaState("stored_bytes", quota.stored_bytes, stored, None))
        return states

    async def check(
        self, owner: str, *, tokens: bool = False, code: bool = False, storage: bool = False
    ) -> None:
        """Check the quotas that a request needs, before its work.

        Args:
            owner: key of the request.
            tokens: the request uses the model.
            code: the request may run code.
            storage: the request stores something.

        Raises:
            ApiError: 429 if a quota is used up, 503 if the counts can't be read.
        """
        needed = {"tokens": tokens, "sandbox_seconds": code, "stored_bytes": storage}
        if self.of(owner) == _UNLIMITED:
            return
        try:
            states = await self.states(owner)
        except (SQLAlchemyError, OSError) as error:  # a driver raises OSError if it can't connect
            _log.exception("usage_not_read")
            message = "The use of this key can't be read, so its quotas can't be checked."
            raise ApiError(503, message, code="usage_unavailable", retry_after_s=RETRY_AFTER_S) from error
        for state in states:
            kind = state.name.partition("_per_")[0]
            if needed[kind] and state.used >= state.limit:
                self._metrics.refused.labels("key_quota").inc()
                raise _quota_error(state, self.usage.clock())

    def meter(self, owner: str, model: str, prompt_tokens: int) -> EpisodeMeter:
        """Return a meter for the episodes of one admitted request."""
        return EpisodeMeter(self, owner, model, prompt_tokens)

    async def record(self, owner: str, model: str, used: Consumption) -> None:
        """Count ``used``, also if the caller is cancelled meanwhile. A failure of the store is logged."""
        task = asyncio.create_task(self._record(owner, model, used))
        self._recording.add(task)
        task.add_done_callback(self._recording.discard)
        await asyncio.shield(task)

    async def stop(self) -> None:
        """Wait until all counts are stored."""
        await asyncio.gather(*self._recording)

    async def _record(self, owner: str, model: str, used: Consumption) -> None:
        try:
            await self.usage.add(owner, model, used)
        except (SQLAlchemyError, OSError):
            _log.exception("usage_not_recorded", model=model, tokens=used.tokens)


_UNLIMITED = KeyQuota()


def _quota_error(state: QuotaState, now: float) -> ApiError:
    amount = state.name.partition("_per_")[0].replace("_", " ")
    period = state.name.partition("_per_")[2]
    if state.resets_at is None:
        hint = "Delete files, containers or responses"
    else:
        hint = f"It is available again at the start of the next {period} (UTC)"
    limit = f"{state.limit:g} {amount}" if state.limit < 1e6 else f"{state.limit:.0f} {amount}"
    message = (
        f"You exceeded your current quota: this key may use {limit}{f' per {period}' if period else ''} and "
        f"has used {state.used:.0f}. {hint}, or ask the operator for a higher quota. GET /v1/usage shows "
        "the use."
    )
    retry = None if state.resets_at is None else state.resets_at - now
    return ApiError(429, message, code=INSUFFICIENT_QUOTA, retry_after_s=retry)


class EpisodeMeter:
    """Counter of what the episodes of one request use."""

    def __init__(self, quotas: Quotas, owner: str, model: str, prompt_tokens: int) -> None:
        self._quotas = quotas
        self._owner = owner
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._tokens = 0
        self._seconds = 0.0
        self._flushes: dict[int, float] = {}
        """Start of the running flush of each episode."""

    def add(self, index: int, event: EpisodeEvent) -> None:
        """Count ``event`` of the episode ``index``."""
        match event:
            case Sampled(chunk):
                self._tokens += len(chunk.ids)
            case StopStringHit(ids) | Observed(ids) | AnswerStarted(ids):
                self._tokens += len(ids)
            case FlushStarted():
                self._flushes[index] = time.monotonic()
            case FlushFinished(tool):
                self._flushes.pop(index, None)
                self._seconds += tool.wall_ms / 1000

    async def close(self) -> None:
        """Record the counts. A flush that was interrupted counts from its start to now."""
        now = time.monotonic()
        seconds = self._seconds + sum(now - start for start in self._flushes.values())
        used = Consumption(1, self._prompt_tokens, self._tokens, seconds)
        await self._quotas.record(self._owner, self._model, used)
