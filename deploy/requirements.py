"""Print the requirements of an image, read from pyproject.toml: ``requirements.py PYPROJECT EXTRA,EXTRA``."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], extras: list[str]) -> list[str]:
    """Return all requirements. Extras that refer to other extras of the project are resolved."""
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
    print("\n".join(requirements(described, [extra for extra in sys.argv[2].split(",") if extra])))
