"""Files and folders that the documentation names exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from tests.docs.blocks import REPO

PAGES: Final = [
    REPO / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md", "checkpoints/quickstart/README.md")
] + sorted((REPO / "docs").rglob("*.md"))
PATH: Final = re.compile(
    r"`((?:service|trainer|sandbox_image|tests|benchmarks|scripts|recipes|deploy|observe|schemas|docs)/[\w./-]*)`"
)
LINK: Final = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(REPO))) for page in PAGES])
def test_named_paths_and_link_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    missing = [path for path in PATH.findall(prose) if not (REPO / path).exists()]
    generated = {"../reference/http.md", "reference/http.md", "http.md"}
    missing += [
        link for link in LINK.findall(prose) if link not in generated and not (page.parent / link).exists()
    ]
    assert missing == []
