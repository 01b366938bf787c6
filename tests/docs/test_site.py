from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import REPO


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built documentation. Strict: a link that leads nowhere fails, one in a docstring too.

    Not quiet: mkdocs then counts no warnings, and a strict build passes with them.
    """
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    built = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300)
    said = built.stdout + built.stderr
    assert built.returncode == 0, said
    assert not re.search(r"^(WARNING|ERROR) ", said, re.MULTILINE), said
    return out


@pytest.mark.timeout(400)
def test_every_page_is_in_the_menu(site: Path) -> None:
    menu = (site / "index.html").read_text(encoding="utf-8")
    for page in (REPO / "docs").rglob("*.md"):
        where = page.relative_to(REPO / "docs").with_suffix("").as_posix()
        assert where == "index" or f'href="{where}/"' in menu, where


def test_the_routes_and_the_modules_are_there(site: Path) -> None:
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


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]+)"', page.read_text()
        )
        assert loaded == [], page


def test_pictures_say_what_they_show() -> None:
    for picture in (REPO / "docs/images").glob("*.svg"):
        text = picture.read_text(encoding="utf-8")
        assert "<title" in text, picture
        assert "<desc" in text, picture
    for page in [REPO / "README.md", *(REPO / "docs").rglob("*.md")]:
        assert not re.search(r"!\[\]\(", page.read_text(encoding="utf-8")), page
