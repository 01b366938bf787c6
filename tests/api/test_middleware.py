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


async def test_every_response_has_a_request_id(client: httpx.AsyncClient) -> None:
    ids = [(await client.get(route)).headers["x-request-id"] for route in ("/health", "/nope", "/ready")]
    assert len(set(ids)) == 3
    mine = await client.get("/health", headers={"x-request-id": "my-id.1"})
    assert mine.headers["x-request-id"] == "my-id.1"
    odd = await client.get("/health", headers={"x-request-id": "a b\tc"})
    assert odd.headers["x-request-id"].startswith("req_")


async def test_unexpected_error_is_500_without_its_cause(client: httpx.AsyncClient) -> None:
    answer = await client.get("/ready")
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text


async def test_common_errors_have_openais_form(client: httpx.AsyncClient) -> None:
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


async def test_body_without_a_length_is_limited(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncGenerator[bytes, None]:
        for _ in range(1000):
            yield b" " * 1024

    answer = await client.post("/v1/chat/completions", content=endless())
    assert answer.status_code == 413


async def test_invalid_body_error_has_a_hint(client: httpx.AsyncClient) -> None:
    url = "/v1/chat/completions"
    body = b'{"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}'
    form = {"content-type": "application/x-www-form-urlencoded"}
    for sent in (
        {"content": body, "headers": form},
        {"content": body, "headers": {"content-type": "text/plain"}},
        {"content": body},
        {"content": b""},
        {"content": b"", "headers": form},
    ):
        answer = await client.post(url, **sent)  # type: ignore[arg-type]
        assert answer.status_code == 400
        assert "application/json" in answer.json()["error"]["message"]
    json_type = {"content-type": "application/json"}
    for content, word in (
        (b'{"a": }', "character 6"),
        (b"[]", "object"),
        (b'"x"', "object"),
        (b"null", "empty"),
    ):
        answer = await client.post(url, content=content, headers=json_type)
        assert (answer.status_code, word in answer.json()["error"]["message"]) == (400, True), answer.text


@pytest.mark.parametrize(
    ("method", "path", "hint"),
    [
        ("POST", "//v1/chat/completions", "Did you mean /v1/chat/completions?"),
        ("POST", "/v1//chat/completions", "Did you mean /v1/chat/completions?"),
        ("POST", "/v1/v1/chat/completions", "Did you mean /v1/chat/completions?"),
        ("POST", "/api/v1/responses", "Did you mean /v1/responses?"),
        ("POST", "/chat/completions", "The base URL ends in /v1: did you mean /v1/chat/completions?"),
        ("GET", "/models", "The base URL ends in /v1: did you mean /v1/models?"),
        ("POST", "/v1/chat/completion", "Did you mean /v1/chat/completions?"),
        ("POST", "/v1/embeddings", "This server has "),
    ],
)
async def test_unknown_path_error_has_a_hint(
    client: httpx.AsyncClient, method: str, path: str, hint: str
) -> None:
    answer = await client.request(method, f"{str(client.base_url).rstrip('/')}{path}")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (404, "unknown_url")
    assert hint in error["message"]


async def test_head_is_served_on_every_get_route(client: httpx.AsyncClient) -> None:
    for path in (
        "/v1/models",
        "/v1/models/",
        "/v1/models/scripted",
        "/health",
        "/metrics",
        "/openapi.json",
        "/",
    ):
        got, head = await client.get(path), await client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        assert head.headers["content-type"] == got.headers["content-type"]
    assert (await client.head("/v1/chat/completions")).status_code == 405
    allowed = await client.post("/v1/models")
    assert allowed.headers["allow"] == "GET, HEAD"
    assert "GET" in allowed.json()["error"]["message"]


ORIGIN = {"origin": "http://localhost:3000"}
PREFLIGHT = {
    **ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, x-stainless-os",
}


async def test_configured_origins_are_allowed() -> None:
    app = make_app(
        ScriptedEngine("Hi." + EOS),
        Buggy(lambda blocks: printed("")),
        cors_origins="http://localhost:3000",
        api_keys="sk-one",
    )
    body = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
    key = {**ORIGIN, "authorization": "Bearer sk-one"}
    url = "/v1/chat/completions"
    async with serve(app) as served, httpx.AsyncClient(base_url=served.url) as client:
        preflight = await client.options(url, headers=PREFLIGHT)
        assert preflight.status_code == 200
        assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
        foreign = await client.options(url, headers={**PREFLIGHT, "origin": "http://evil.example"})
        assert "access-control-allow-origin" not in foreign.headers
        for answer, status in [
            (await client.post(url, json=body, headers=key), 200),
            (await client.post(url, json={**body, "stream": True}, headers=key), 200),
            (await client.post(url, json={}, headers=key), 400),
            (await client.post(url, json=body, headers=ORIGIN), 401),
            (await client.get("/ready", headers=key), 500),
        ]:
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == ORIGIN["origin"]
            assert "x-request-id" in answer.headers["access-control-expose-headers"]


async def test_other_origins_are_rejected_by_default(client: httpx.AsyncClient) -> None:
    assert (await client.options("/v1/chat/completions", headers=PREFLIGHT)).status_code == 405
    assert "access-control-allow-origin" not in (await client.get("/health", headers=ORIGIN)).headers
