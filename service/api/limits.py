"""Going down without breaking anything: what runs may end, what is new is turned away.

How many episodes run at once, and how many may wait. Admission fails; it does not wait for ever.

How much one API key may ask for: requests a minute, and requests at once.
"""

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
"""Beginnings of the paths that do work for a client."""


class Drain:
    """Whether the server is going down, and how much is still running."""

    def __init__(self) -> None:
        self.draining = False
        self.active = 0
        """Requests in flight, and work that goes on without one (add and subtract)."""

    def begin(self) -> None:
        """From now on new requests are refused."""
        self.draining = True

    @property
    def done(self) -> bool:
        """Nothing runs any more."""
        return self.active == 0


class Draining:
    """Pure ASGI middleware: counts requests below ``/v1/``, and answers 503 to new ones while draining."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(COUNTED):
            await self._app(scope, receive, send)
            return
        if self._drain.draining:
            error = ApiError(
                503, "The server is going down.", code="server_going_down", retry_after_s=RETRY_AFTER_S
            )
            # The next try must open a connection, which finds another server.
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
    """A first-come, first-served gate, counted in episodes: a request with ``n`` choices takes ``n`` places.

    Args:
        limit: episodes at once.
        queue: episodes that may wait.
        timeout_s: the longest wait in seconds.
    """

    def __init__(self, limit: int, queue: int, timeout_s: float) -> None:
        self.running = 0
        self._limit = limit
        self._queue = queue
        self._timeout_s = timeout_s
        self._waiters: deque[_Waiter] = deque()

    @property
    def waiting(self) -> int:
        """Episodes in the queue."""
        return sum(waiter.episodes for waiter in self._waiters)

    @asynccontextmanager
    async def admit(self, episodes: int = 1) -> AsyncGenerator[None, None]:
        """Hold places for ``episodes`` of one request.

        Raises:
            ApiError: 400 if they can never fit, 429 if the queue is full or the wait was too long.
        """
        if episodes > self._limit:
            raise ApiError(400, f"'n': at most {self._limit} episodes run at once here", param="n")
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
            raise self._refusal("The server is busy and its queue is full.")
        waiter = _Waiter(episodes)
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(self._timeout_s):
                await waiter.admitted.wait()
        except BaseException as error:
            if waiter.admitted.is_set():  # admitted in the very moment of giving up
                self.running -= episodes
            else:
                self._waiters.remove(waiter)
            self._wake()
            if isinstance(error, TimeoutError):
                raise self._refusal("The server is busy and no place came free in time.") from None
            raise

    def _wake(self) -> None:
        while self._waiters and self.running + self._waiters[0].episodes <= self._limit:
            waiter = self._waiters.popleft()
            self.running += waiter.episodes
            waiter.admitted.set()

    def _refusal(self, message: str) -> ApiError:
        return ApiError(429, message, retry_after_s=min(self._timeout_s, 5.0))


class KeyLimits:
    """Pure ASGI middleware, behind `service.api.auth.ApiKeys`. Only the routes below ``/v1/`` count.

    Every counted answer tells the limit and what is left of it in OpenAI's ``x-ratelimit-*`` headers.

    Args:
        app: the next application.
        metrics: count what is refused.
        requests_per_minute: for keys that name no number of their own; None: no limit.
        concurrency: likewise; a stream counts until its end.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, *, requests_per_minute: int | None, concurrency: int | None
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._requests_per_minute = requests_per_minute
        self._concurrency = concurrency
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._at_once: Counter[bytes] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key: ApiKey | None = scope.get("api_key")
        if scope["type"] != "http" or key is None or not scope["path"].startswith(COUNTED):
            await self._app(scope, receive, send)
            return
        at_once = key.concurrency or self._concurrency
        if at_once is not None and self._at_once[key.digest] >= at_once:
            self._metrics.refused.labels("key_concurrency").inc()
            error = ApiError(429, f"This key may have {at_once} requests at once.", retry_after_s=1)
            await error.response()(scope, receive, send)
            return
        self._at_once[key.digest] += 1
        try:
            await self._rated(key, scope, receive, send)
        finally:
            self._at_once[key.digest] -= 1
            self._at_once += Counter()  # drops the zeros

    async def _rated(self, key: ApiKey, scope: Scope, receive: Receive, send: Send) -> None:
        rate = key.requests_per_minute or self._requests_per_minute
        if rate is None:
            await self._app(scope, receive, send)
            return
        item, name = RateLimitItemPerMinute(rate), key.digest.hex()
        passes = await self._limiter.hit(item, name)
        stats = await self._limiter.get_window_stats(item, name)
        resets_s = max(stats.reset_time - time.time(), 0.0)
        told = {
            "x-ratelimit-limit-requests": str(rate),
            "x-ratelimit-remaining-requests": str(stats.remaining),
            "x-ratelimit-reset-requests": f"{resets_s:.3f}s",
        }

        def send_with_limits(message: Message) -> Awaitable[None]:  # no coroutine, as in `RequestContext`
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(told)
            return send(message)

        if passes:
            await self._app(scope, receive, send_with_limits)
            return
        self._metrics.refused.labels("key_requests").inc()
        error = ApiError(429, f"This key may make {rate} requests a minute.", retry_after_s=max(resets_s, 1))
        await error.response()(scope, receive, send_with_limits)
