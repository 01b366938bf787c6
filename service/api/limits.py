"""Limits on requests: draining before a shutdown, admission of episodes, and rates per API key."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.auth import ApiKey
from service.api.errors import ApiError
from service.api.telemetry.metrics import Metrics

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
