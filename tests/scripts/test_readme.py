"""scripts/README.md lists every script and every test marker."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
README = (REPO / "scripts/README.md").read_text(encoding="utf-8")


def test_at_most_ten_scripts_all_listed() -> None:
    scripts = {
        path.name for path in (REPO / "scripts").iterdir() if path.is_file() and os.access(path, os.X_OK)
    }
    listed = set(re.findall(r"^\| `([a-z-]+)[^`]*` \|", README.split("## Test suites")[0], re.MULTILINE))
    assert listed == scripts
    assert len(scripts) <= 10


def test_every_marker_is_documented() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
    markers = [marker.partition(":")[0] for marker in project["tool"]["pytest"]["ini_options"]["markers"]]
    assert [name for name in markers if f"`{name}`" not in README] == []


def test_every_make_target_exists() -> None:
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"make ([a-z-]+)", README)) - {"help"}
    assert [target for target in targets if not re.search(rf"^{target}:.*## ", makefile, re.MULTILINE)] == []
