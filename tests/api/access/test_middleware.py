from __future__ import annotations

from collections.abc import AsyncGenerator

import httpx
import pytest

from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve


class Buggy(ScriptedSandbox):
    async def ready(self) -> bool:
        raise RuntimeError("secret")


@pytest.fixture
async def client() -> AsyncGenerator[httpx.AsyncClient, None]:
    app = make_app(ScriptedEngine(EOS), Buggy(lambda blocks: printed("")), max_body_bytes=2048)
    async with serve(app) as served, httpx.AsyncClient(base_url=served.url) as http:
        yield http


async def test_every_answer_has_a_request_id(client: httpx.AsyncClient) -> None:
    ids = [(await client.get(route)).headers["x-request-id"] for route in ("/health", "/nope", "/ready")]
    assert len(set(ids)) == 3
    mine = await client.get("/health", headers={"x-request-id": "my-id.1"})
    assert mine.headers["x-request-id"] == "my-id.1"
    odd = await client.get("/health", headers={"x-request-id": "a b\tc"})
    assert odd.headers["x-request-id"].startswith("req_")


async def test_an_unforeseen_error_is_500_and_keeps_its_cause(client: httpx.AsyncClient) -> None:
    answer = await client.get("/ready")
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text


async def test_the_usual_mistakes_get_openais_error_object(client: httpx.AsyncClient) -> None:
    url = "/v1/chat/completions"
    json_type = {"content-type": "application/json"}
    for answer, status in [
        (await client.get("/nope"), 404),
        (await client.get(url), 405),
        (await client.post(url, content=b"{", headers=json_type), 400),
        (await client.post(url, content=b"\xff\xfe", headers=json_type), 400),
        (await client.post(url, content=b"[" * 2000, headers=json_type), 400),
        (await client.post(url, content=b"[]", headers=json_type), 400),
        (await client.post(url), 400),
        (await client.post(url, content=b" " * 4096, headers=json_type), 413),
    ]:
        assert answer.status_code == status, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert (await client.get(url)).headers["allow"] == "POST"


async def test_a_body_without_a_length_is_counted(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncGenerator[bytes, None]:
        for _ in range(1000):
            yield b" " * 1024

    answer = await client.post("/v1/chat/completions", content=endless())
    assert answer.status_code == 413
