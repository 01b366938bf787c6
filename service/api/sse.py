"""Server-sent events, written by hand: the few lines that OpenAI's streams need.

Stop working for a client that has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Final, TypeVar

import structlog
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api.errors import as_api_error
from service.common.json import dumps

T = TypeVar("T")


async def until_disconnect(receive: Receive, work: Coroutine[object, object, T]) -> T:
    """The result of ``work``, which is cancelled, and its cleaning up awaited, when the client leaves first.

    The request's body must have been read: what is received after it can only be the disconnect.

    Raises:
        ClientDisconnect: the client left.
    """
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        watcher.cancel()
        task.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


DATA: Final = b"data: "
END: Final = b"\n\n"
DONE: Final = DATA + b"[DONE]" + END
KEEP_ALIVE: Final = b": keep-alive\n\n"

_log = structlog.get_logger(__name__)


def data(payload: object) -> bytes:
    """One event."""
    return DATA + dumps(payload) + END


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
            body = _Body(send)
            await body.write(first)
            async with aclosing(_errors_told(events)) as parts, _kept_alive(body, self._keep_alive_s):
                async for part in parts:
                    await body.write(part)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Body:
    """Writes pieces of a response, and knows when it wrote last (seconds of the event loop's clock)."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._clock = asyncio.get_running_loop().time
        self._written_at = self._clock()

    @property
    def silent_s(self) -> float:
        return self._clock() - self._written_at

    def write(self, part: bytes) -> Awaitable[None]:
        self._written_at = self._clock()
        return self._send({"type": "http.response.body", "body": part, "more_body": True})


@asynccontextmanager
async def _kept_alive(body: _Body, every_s: float) -> AsyncGenerator[None, None]:
    """Meanwhile a comment is written after each ``every_s`` seconds of silence.

    One task a stream: a timer or a task a token would cost more than all else that is done for it.
    """
    task = asyncio.create_task(_fill_silence(body, every_s))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _fill_silence(body: _Body, every_s: float) -> None:
    while True:
        if (left := every_s - body.silent_s) > 0:
            await asyncio.sleep(left)
        else:
            await body.write(KEEP_ALIVE)


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
