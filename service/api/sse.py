"""Server-sent events, and cancellation of work whose client has disconnected.

The events are encoded by hand: FastAPI's and sse-starlette's encoders cost between a third and nearly twice
of the CPU time per token that the whole API takes, and neither can delay the status line until the first
event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api.errors import ApiError, as_api_error
from service.common.json import Json, dumps

T = TypeVar("T")


async def until_disconnect(receive: Receive, work: Coroutine[object, object, T]) -> T:
    """Return the result of ``work``, or cancel it and wait for its cleanup if the client disconnects first.

    The request's body must have been read, so that the next message is the disconnect.

    Raises:
        ClientDisconnect: the client disconnected.
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
    """Encode one event."""
    return DATA + dumps(payload) + END


def event(payload: Json) -> bytes:
    """Encode one event, named by its ``type``."""
    return f"event: {payload['type']}\n".encode() + data(payload)


@dataclass(frozen=True, slots=True)
class StreamForm:
    """The parts of a stream in which the APIs differ."""

    keep_alive: bytes
    """Sent after a time of silence."""
    error: Callable[[ApiError, str | None], bytes]
    """Encodes an error that ends the stream, with the id of the request."""
    done: bytes
    """Sent at the end, also after an error."""


OPENAI_STREAM: Final = StreamForm(KEEP_ALIVE, lambda error, _: data(error.body()), DONE)


class EventStream(Response):
    """Response that streams ``events``, with a keep-alive after each ``keep_alive_s`` seconds of silence.

    The status line waits for the first event, so an earlier error becomes an ordinary error response. A later
    error is sent as an event, which SDKs raise. ``events`` is closed when the client disconnects.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], keep_alive_s: float, form: StreamForm = OPENAI_STREAM
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._events = events
        self._keep_alive_s = keep_alive_s
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await until_disconnect(receive, self._run(send, scope.get("request_id")))

    async def _run(self, send: Send, request_id: str | None) -> None:
        async with aclosing(self._events) as events:
            first = await anext(events)
            start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            await send(start)
            body = _Body(send)
            await body.write(first)
            parts = _with_errors(events, self._form, request_id)
            async with aclosing(parts), _kept_alive(body, self._form.keep_alive, self._keep_alive_s):
                async for part in parts:
                    await body.write(part)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Body:
    """Writer of a response's body that measures its silence, in seconds."""

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
async def _kept_alive(body: _Body, sign: bytes, every_s: float) -> AsyncGenerator[None, None]:
    """Write ``sign`` after each ``every_s`` seconds of silence while the context is open.

    It takes one task per stream, because a timer or a task per token would cost more than all other work on
    it.
    """
    task = asyncio.create_task(_fill_silence(body, sign, every_s))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _fill_silence(body: _Body, sign: bytes, every_s: float) -> None:
    while True:
        if (left := every_s - body.silent_s) > 0:
            await asyncio.sleep(left)
        else:
            await body.write(sign)


async def _with_errors(
    events: AsyncGenerator[bytes, None], form: StreamForm, request_id: str | None
) -> AsyncGenerator[bytes, None]:
    try:
        async for part in events:
            yield part
    except Exception as error:
        api_error = as_api_error(error)
        if api_error.status >= 500:
            _log.exception("stream_failed")
        yield form.error(api_error, request_id)
    if form.done:
        yield form.done
