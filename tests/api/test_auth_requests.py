from __future__ import annotations

import httpx
import pytest

from service.server.settings import Settings
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve

ROUTES = ("/v1/models", "/v1/models/scripted", "/metrics", "/docs/nope", "/nope")
OPEN = ("/health", "/ready", "/openapi.json", "/docs")


async def test_private_routes_require_a_key() -> None:
    app = make_app(
        ScriptedEngine(EOS),
        ScriptedSandbox(lambda blocks: printed("")),
        api_keys="sk-one,sk-two",
    )
    async with serve(app, key="sk-two") as served, httpx.AsyncClient(base_url=served.url) as client:
        for route in OPEN:
            assert (await client.get(route)).status_code == 200, route
        for route in ROUTES:
            refused = await client.get(route)
            assert refused.status_code == 401, route
            assert refused.json()["error"]["code"] == "invalid_api_key"
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.headers["x-request-id"]
        for header in ("Bearer sk-three", "Bearer", "Basic sk-one", "sk-one", "Bearer sk-on"):
            refused = await client.get("/v1/models", headers={"Authorization": header})
            assert refused.status_code == 401, header
        assert [model.id async for model in served.openai.models.list()] == ["scripted"]


async def test_accepts_keys_in_other_headers() -> None:
    app = make_app(ScriptedEngine(EOS), ScriptedSandbox(lambda blocks: printed("")), api_keys="sk-one")
    async with serve(app) as served, httpx.AsyncClient(base_url=served.url) as client:
        for headers, status in [
            ({"x-api-key": "sk-one"}, 200),
            ({"api-key": "sk-one"}, 200),
            ({"authorization": "Bearer dummy", "x-api-key": "sk-one"}, 200),
            ({"x-api-key": "sk-two"}, 401),
            ({"x-api-key": ""}, 401),
            ({"api-key": "Bearer sk-one"}, 401),
        ]:
            assert (await client.get("/v1/models", headers=headers)).status_code == status, headers


async def test_only_health_and_ready_are_open() -> None:
    app = make_app(ScriptedEngine(EOS), ScriptedSandbox(lambda blocks: printed("")), api_keys="sk-one")
    async with serve(app, key="sk-one") as served, httpx.AsyncClient(base_url=served.url) as client:
        answers = {
            (method, path): (await client.request(method, path.replace("{", "").replace("}", ""))).status_code
            for path, methods in app.openapi()["paths"].items()
            for method in methods
        }
    assert (answers.pop(("get", "/health")), answers.pop(("get", "/ready"))) == (200, 200)
    assert len(answers) > 8
    assert set(answers.values()) == {401}


def test_keys_are_not_logged() -> None:
    with pytest.raises(ValueError, match="sandbox") as caught:
        Settings(api_keys="sk-one", sandbox="nope")  # type: ignore[arg-type]
    assert "sk-one" not in str(caught.value)
