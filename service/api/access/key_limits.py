"""How much one API key may ask for: requests a minute, and requests at once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.access.drain import COUNTED
from service.api.errors import ApiError
from service.api.telemetry.metrics import Metrics
from service.api_keys import ApiKey


class KeyLimits:
    """Pure ASGI middleware, behind `service.api.access.auth.ApiKeys`. Only the routes below ``/v1/`` count.

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
