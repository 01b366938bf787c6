from __future__ import annotations

import asyncio
import json

import pytest

from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve

BODY = json.dumps({"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}).encode()
OFFER = (
    b"Connection: Upgrade, HTTP2-Settings\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
    b"Upgrade: h2c\r\n"
)


def post(offer: bytes, *, chunked: bool) -> bytes:
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + offer
    )
    if chunked:
        return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length: ")[2].partition(b"\r")[0])
    return int(head.split(b" ")[1]), await reader.readexactly(length)


@pytest.mark.parametrize("chunked", [False, True])
async def test_upgrade_offer_is_served_as_http_1(chunked: bool) -> None:
    app = make_app(ScriptedEngine("Hello." + EOS), ScriptedSandbox(lambda blocks: printed("")))
    offered, plain = post(OFFER, chunked=chunked), post(b"", chunked=chunked)
    get = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n" + OFFER + b"\r\n"
    async with serve(app) as served:
        host, port = served.url.removeprefix("http://").split(":")
        for cut in (0, 30, len(offered) - len(BODY) - 20, len(offered) - 10):
            reader, writer = await asyncio.open_connection(host, int(port))
            # On one connection: two requests with the offer, one without it, and one without a body.
            for request in (offered, offered, plain, get):
                writer.write(request[:cut])
                await writer.drain()
                await asyncio.sleep(0.01)
                writer.write(request[cut:])
                status, body = await answer(reader)
                assert status == 200, body
                assert ("Hello." if request != get else "scripted") in body.decode()
            writer.close()
            await writer.wait_closed()


async def test_pipelined_requests_are_answered_in_order() -> None:
    app = make_app(ScriptedEngine("Hello." + EOS), ScriptedSandbox(lambda blocks: printed("")))
    async with serve(app) as served:
        host, port = served.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        get = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
        writer.write(post(OFFER, chunked=False) + get + post(OFFER, chunked=True) + get)
        bodies = [await answer(reader) for _ in range(4)]
        writer.close()
        await writer.wait_closed()
    assert [status for status, _ in bodies] == [200] * 4
    assert [b"chat.completion" in body for _, body in bodies] == [True, False, True, False]


async def test_invalid_http_gets_400() -> None:
    app = make_app(ScriptedEngine("Hello." + EOS), ScriptedSandbox(lambda blocks: printed("")))
    async with serve(app) as served:
        host, port = served.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"nonsense\r\n\r\n")
        status, _ = await answer(reader)
        writer.close()
        await writer.wait_closed()
    assert status == 400
