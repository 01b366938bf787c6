"""Writes what each image installs, read from pyproject.toml: ``requirements.py PYPROJECT FOLDER``."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

EXTRAS = {"core": (), "api": ("cpu", "otel", "postgres"), "train": ("train",)}
"""The extras of each image, beside what every install needs."""


def requirements(project: dict[str, Any], extras: tuple[str, ...]) -> list[str]:
    """All requirements, those of extras that name extras of the project itself included."""
    found: list[str] = []
    queue = [*project["dependencies"], *(f"{project['name']}[{extra}]" for extra in extras)]
    while queue:
        requirement = queue.pop(0)
        own = re.fullmatch(rf"{re.escape(project['name'])}\[([\w, -]+)\]", requirement)
        if own is None:
            found.append(requirement)
        else:
            for extra in own[1].split(","):
                queue += project["optional-dependencies"][extra.strip()]
    return sorted(set(found))


if __name__ == "__main__":
    described = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
    for image, image_extras in EXTRAS.items():
        lines = requirements(described, image_extras)
        Path(sys.argv[2], f"{image}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
