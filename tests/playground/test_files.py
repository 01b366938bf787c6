from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncGenerator

import httpx
import pytest

from service.playground.files import STATIC
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app


@pytest.fixture
async def client() -> AsyncGenerator[httpx.AsyncClient, None]:
    """A server that wants keys."""
    app = make_app(ScriptedEngine(EOS), ScriptedSandbox(lambda blocks: printed("")), api_keys="secret")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


async def test_only_the_page_opens_without_a_key(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert (await client.get("/playground/main.js")).headers["content-type"].startswith("text/javascript")
    for path in ("/v1/models", "/playground/../v1/models", "/playground/nothing.js", "/playground/"):
        assert (await client.get(path)).status_code == 401
    assert (await client.post("/", json={})).status_code == 401


async def test_policy_allows_only_own_scripts(client: httpx.AsyncClient) -> None:
    policy = (await client.get("/")).headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for name in ("script-src", "style-src", "font-src", "connect-src"):
        assert rules[name] == "'self'"
    assert rules["img-src"] == "'self' blob:"  # figures are fetched with the API key
    assert rules["trusted-types"] == "dompurify"
    assert rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert "unsafe" not in policy


async def test_page_references_only_existing_own_files(
    client: httpx.AsyncClient,
) -> None:
    names = re.findall(r'(?:src|href)="(?!#)([^"]+)"', (await client.get("/")).text)
    scripts = [path.read_text(encoding="utf-8") for path in STATIC.glob("*.js")]
    names += [f"playground/{name}" for text in scripts for name in re.findall(r'from "\./([^"]+)"', text)]
    assert len(names) > 10
    for name in names:
        assert (await client.get(f"/{name}")).status_code == 200, name


async def test_unchanged_file_is_304(client: httpx.AsyncClient) -> None:
    first = await client.get("/playground/style.css")
    again = await client.get("/playground/style.css", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert "content-security-policy" in again.headers


def test_scripts_never_create_markup() -> None:
    for path in STATIC.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert forbidden not in text, (path.name, forbidden)


def test_vendored_libraries_are_unchanged_and_have_their_licences() -> None:
    vendor = STATIC / "vendor"
    manifest = json.loads((vendor / "manifest.json").read_text(encoding="utf-8"))
    digests = {name: digest for entry in manifest.values() for name, digest in entry["files"].items()}
    found = {path.relative_to(vendor).as_posix(): path for path in vendor.rglob("*") if path.is_file()}
    assert set(found) == {"manifest.json", *digests}
    for name, digest in digests.items():
        assert hashlib.sha256(found[name].read_bytes()).hexdigest() == digest, name
    for name, entry in manifest.items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", entry["version"])
        licence = next(file for file in entry["files"] if file.startswith("licenses/"))
        assert "copyright" in found[licence].read_text(encoding="utf-8").lower(), name


async def test_fonts_of_the_style_sheet_are_served(client: httpx.AsyncClient) -> None:
    sheet = (await client.get("/playground/vendor/katex.min.css")).text
    fonts = set(re.findall(r"url\((fonts/[\w-]+\.woff2)\)", sheet))
    assert len(fonts) == 20
    for font in fonts:
        response = await client.get(f"/playground/vendor/{font}")
        assert (response.status_code, response.headers["content-type"]) == (200, "font/woff2")


def test_the_page_is_small() -> None:
    own = [path for path in STATIC.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in own) < 140_000
    assert sum(path.stat().st_size for path in (STATIC / "vendor").rglob("*")) < 1_000_000
    assert max(len(path.read_text().splitlines()) for path in STATIC.glob("*.js")) < 250
