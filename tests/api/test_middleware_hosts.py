from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve

LOCAL = (
    "127.0.0.1:8000",
    "127.0.0.1",
    "localhost",
    "LOCALHOST:1",
    "localhost.",
    "app.localhost:3000",
    "[::1]:8000",
    "192.168.1.7:80",
)
FOREIGN = (
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.nip.io",
    "xlocalhost",
    "a",
)


async def statuses(hosts: tuple[str, ...], **options: Any) -> set[int]:
    app = make_app(ScriptedEngine(EOS), ScriptedSandbox(lambda blocks: printed("")), **options)
    async with serve(app) as served, httpx.AsyncClient(base_url=served.url) as client:
        headers = {"authorization": "Bearer sk-one"}
        return {
            (await client.get(path, headers={**headers, "host": host})).status_code
            for host in hosts
            for path in ("/v1/models", "/health", "/")
        }


async def test_keyless_server_accepts_local_host_names_only() -> None:
    assert await statuses(LOCAL) == {200}
    assert await statuses(FOREIGN) == {403}


@pytest.mark.parametrize("allowed", ["other.example, evil.example,*.nip.io", "*"])
async def test_additional_host_names_can_be_allowed(allowed: str) -> None:
    assert await statuses(("evil.example:1", "127.0.0.1.nip.io"), allowed_hosts=allowed) == {200}


async def test_server_with_keys_accepts_any_host_name() -> None:
    assert await statuses(FOREIGN, api_keys="sk-one") == {200}


async def test_host_error_has_a_hint() -> None:
    app = make_app(ScriptedEngine(EOS), ScriptedSandbox(lambda blocks: printed("")))
    async with serve(app) as served, httpx.AsyncClient(base_url=served.url) as client:
        answer = await client.get("/v1/models", headers={"host": "evil.example"})
    error = answer.json()["error"]
    assert (error["code"], "allowed_hosts" in error["message"]) == ("host_not_allowed", True)
    assert answer.headers["x-request-id"]
