from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncGenerator, Callable

import httpx
import pytest
import zstandard

from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve

URL = "/v1/chat/completions"
BODY = json.dumps({"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}).encode()
ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "GZIP": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.compress,
}


@pytest.fixture
async def client() -> AsyncGenerator[httpx.AsyncClient, None]:
    app = make_app(
        ScriptedEngine("Hello." + EOS), ScriptedSandbox(lambda blocks: printed("")), max_body_bytes=65_536
    )
    async with serve(app) as served, httpx.AsyncClient(base_url=served.url) as http:
        yield http


async def post(client: httpx.AsyncClient, content: bytes, encoding: str) -> httpx.Response:
    headers = {"content-type": "application/json", "content-encoding": encoding}
    return await client.post(URL, content=content, headers=headers)


@pytest.mark.parametrize("encoding", ENCODERS)
async def test_compressed_bodies_are_decoded(client: httpx.AsyncClient, encoding: str) -> None:
    answer = await post(client, ENCODERS[encoding](BODY), encoding)
    assert answer.json()["choices"][0]["message"]["content"] == "Hello."


async def test_multiple_members_and_frames_are_one_body(client: httpx.AsyncClient) -> None:
    for encoding in ("gzip", "zstd"):
        parts = ENCODERS[encoding](BODY[:20]) + ENCODERS[encoding](BODY[20:])
        assert (await post(client, parts, encoding)).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
async def test_decompression_bomb_is_413(client: httpx.AsyncClient, encoding: str) -> None:
    bomb = ENCODERS[encoding](b" " * 50_000_000)
    assert len(bomb) < 65_536
    answer = await post(client, bomb, encoding)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


async def test_corrupt_compressed_body_is_400(client: httpx.AsyncClient) -> None:
    for encoding in ("gzip", "deflate", "zstd"):
        answer = await post(client, BODY, encoding)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_body")
        cut = await post(client, ENCODERS[encoding](BODY)[:-9], encoding)
        assert cut.status_code == 400
    large_window = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    ).compress(BODY * 10)
    assert (await post(client, large_window, "zstd")).status_code == 400


@pytest.mark.parametrize("encoding", ["br", "compress", "gzip, gzip", "nonsense"])
async def test_unknown_encoding_is_415(client: httpx.AsyncClient, encoding: str) -> None:
    answer = await post(client, BODY, encoding)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")
    assert "zstd" in answer.headers["accept-encoding"]


async def test_identity_encoding_is_accepted(client: httpx.AsyncClient) -> None:
    assert (await post(client, BODY, "identity")).status_code == 200
