"""The page at /docs: its files are this package's own, and unchanged."""

from __future__ import annotations

import re
from hashlib import sha256

import httpx
import pytest

from service.api.health import FOLDER
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app

# Of swagger-ui-dist 5.35.0, as it was published.
HASHES = {
    "swagger-ui-bundle.js": "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2",
    "swagger-ui.css": "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d",
}


@pytest.fixture
def client() -> httpx.AsyncClient:
    """A server that wants keys."""
    app = make_app(ScriptedEngine(EOS), ScriptedSandbox(lambda blocks: printed("")), api_keys="secret")
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.mark.parametrize("name", HASHES)
def test_vendored_files_are_unchanged(name: str) -> None:
    assert sha256((FOLDER / name).read_bytes()).hexdigest() == HASHES[name]
    assert "5.35.0" in (FOLDER / "README.md").read_text()
    assert "Apache License" in (FOLDER / "LICENSE").read_text()


async def test_docs_page_and_its_files_need_no_key(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    names = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(names) >= 4
    for name in names:
        assert "//" not in name
        assert (await client.get(f"/{name}")).status_code == 200, name
    assert (await client.get("/openapi.json")).json()["info"]["title"] == "IH-GRPO"


async def test_docs_policy_forbids_other_hosts(client: httpx.AsyncClient) -> None:
    policy = (await client.get("/docs")).headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["connect-src"] == "'self'"
    assert "http" not in policy
    assert "unsafe-eval" not in policy


async def test_pages_of_fastapi_are_disabled(client: httpx.AsyncClient) -> None:
    assert (await client.get("/redoc", headers={"Authorization": "Bearer secret"})).status_code == 404
