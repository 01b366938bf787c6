"""Going down without breaking anything: what runs may end, what is new is turned away."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.errors import ApiError

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
