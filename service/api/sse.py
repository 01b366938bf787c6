"""Server-sent events, written by hand: the few lines that OpenAI's streams need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api.disconnect import until_disconnect
from service.api.errors import as_api_error
from service.api.wire import dumps

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": keep-alive\n\n"

_log = structlog.get_logger(__name__)


def data(payload: object) -> bytes:
    """One event."""
    return b"data: " + dumps(payload) + b"\n\n"


class EventStream(Response):
    """Sends ``events`` as they come, and a comment whenever they are silent for ``keep_alive_s`` seconds.

    The status line waits for the first event: an error before it is an ordinary error response. A later one
    is sent as an event, which the SDKs raise. ``events`` is closed when the client leaves.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], keep_alive_s: float) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._events = events
        self._keep_alive_s = keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await until_disconnect(receive, self._run(send))

    async def _run(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            first = await anext(events)
            start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            await send(start)
            await send({"type": "http.response.body", "body": first, "more_body": True})
            async with aclosing(with_keep_alive(_errors_told(events), self._keep_alive_s)) as parts:
                async for part in parts:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _errors_told(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    try:
        async for event in events:
            yield event
    except Exception as error:
        told = as_api_error(error)
        if told.status >= 500:
            _log.exception("stream_failed")
        yield data(told.body())
    yield DONE


async def with_keep_alive(events: AsyncGenerator[bytes, None], every_s: float) -> AsyncGenerator[bytes, None]:
    """``events``, with a comment after each ``every_s`` seconds of silence."""
    step: asyncio.Task[bytes | None] | None = None
    try:
        while True:
            step = asyncio.create_task(_next(events))
            while not (await asyncio.wait({step}, timeout=every_s))[0]:
                yield KEEP_ALIVE
            if (event := step.result()) is None:
                return
            yield event
    finally:
        if step is not None:
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)
        await events.aclose()


async def _next(events: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(events, None)
