from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from service.api import sse
from service.api.errors import ApiError
from service.api.messages.route import STREAM


class Client:
    """The other end of an ASGI connection; ``leaves_after`` body messages it is gone."""

    def __init__(self, leaves_after: int | None = None) -> None:
        self.sent: list[Any] = []
        self._left = asyncio.Event()
        self._leaves_after = leaves_after

    async def receive(self) -> Any:
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        if len(self.sent) - 1 == self._leaves_after:
            self._left.set()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def say(*parts: str | float | Exception) -> AsyncGenerator[bytes, None]:
    for part in parts:
        if isinstance(part, Exception):
            raise part
        if isinstance(part, float):
            await asyncio.sleep(part)
        else:
            yield sse.data(part)


async def send(client: Client, events: AsyncGenerator[bytes, None], keep_alive_s: float = 10) -> None:
    await sse.EventStream(events, keep_alive_s)({"type": "http"}, client.receive, client.send)


async def test_events_then_done() -> None:
    client = Client()
    await send(client, say("a", "b"))
    assert client.body == b'data: "a"\n\ndata: "b"\n\ndata: [DONE]\n\n'
    headers = dict(client.sent[0]["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert b"content-length" not in headers
    assert client.sent[-1]["more_body"] is False


async def test_stream_in_another_form() -> None:
    form = sse.StreamForm(b"ping\n\n", lambda error, request: f"{error.message} {request}".encode(), b"")
    failing = ("a", ApiError(429, "busy"))
    for parts, expected in ((("a",), b'data: "a"\n\n'), (failing, b'data: "a"\n\nbusy req_1')):
        client = Client()
        stream = sse.EventStream(say(*parts), 10, form)
        await stream({"type": "http", "request_id": "req_1"}, client.receive, client.send)
        assert client.body == expected


def test_error_events_of_messages_have_the_request_id() -> None:
    assert b'"request_id":"req_1"' in STREAM.error(ApiError(429, "busy"), "req_1")


async def test_keep_alive_starts_with_the_stream() -> None:
    client = Client()
    await send(client, say(0.1, "a", 0.1, "b"), keep_alive_s=0.02)
    first, *rest = client.body.split(b"\n\n")
    assert first == b'data: "a"'
    assert rest[0] == b": keep-alive"


async def test_early_error_is_raised_and_later_error_is_an_event() -> None:
    client = Client()
    with pytest.raises(ApiError):
        await send(client, say(ApiError(429, "busy")))
    assert client.sent == []
    await send(client, say("a", ApiError(429, "busy")))
    payload = json.loads(client.body.split(b"\n\n")[1].removeprefix(b"data: "))
    assert payload["error"]["message"] == "busy"
    assert client.body.endswith(sse.DONE)


@pytest.mark.parametrize("pause", [0.0, 30.0])
async def test_disconnect_closes_the_events(pause: float) -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield sse.data("x")
                await asyncio.sleep(pause)
        finally:
            closed.set()

    with pytest.raises(ClientDisconnect):
        await asyncio.wait_for(send(Client(leaves_after=1), endless()), 5)
    assert closed.is_set()


@given(st.text(alphabet=st.characters(codec=None)))
def test_any_text_is_one_event_and_round_trips(text: str) -> None:
    event = sse.data(text)
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2
    assert json.loads(event.removeprefix(b"data: ")) == text
