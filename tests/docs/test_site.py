from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import REPO


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built documentation. A broken link fails the build, also in a docstring.

    Without ``--quiet``, because mkdocs then counts no warnings and a strict build passes with them.
    """
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    built = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300)
    output = built.stdout + built.stderr
    assert built.returncode == 0, output
    assert not re.search(r"^(WARNING|ERROR) ", output, re.MULTILINE), output
    return out


@pytest.mark.timeout(400)
def test_menu_lists_every_page(site: Path) -> None:
    menu = (site / "index.html").read_text(encoding="utf-8")
    for page in (REPO / "docs").rglob("*.md"):
        where = page.relative_to(REPO / "docs").with_suffix("").as_posix()
        assert where == "index" or f'href="{where}/"' in menu, where


def test_reference_lists_routes_and_modules(site: Path) -> None:
    routes = (site / "reference/http/index.html").read_text(encoding="utf-8")
    for route in ("/v1/chat/completions", "/v1/models", "/health"):
        assert route in routes
    modules = (site / "reference/python/index.html").read_text(encoding="utf-8")
    for name in (
        "trainer.training.loss.ih_grpo_loss",
        "service.sandbox.base.Session.flush",
        "service.episode.events.ExecutedTool",
    ):
        assert f'id="{name}"' in modules


def test_pages_load_nothing_from_other_servers(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]+)"', page.read_text()
        )
        assert loaded == [], page


def test_pictures_have_descriptions() -> None:
    for picture in (REPO / "docs/images").glob("*.svg"):
        text = picture.read_text(encoding="utf-8")
        assert "<title" in text, picture
        assert "<desc" in text, picture
    for page in [REPO / "README.md", *(REPO / "docs").rglob("*.md")]:
        assert not re.search(r"!\[\]\(", page.read_text(encoding="utf-8")), page
