#!/usr/bin/env python3
"""Print the release notes of a tag: ``release_notes.py v1.2.3``, run in the project's folder.

Fails unless the tag is the version in pyproject.toml and CHANGELOG.md has a section for it.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def release_notes(tag: str, pyproject: str, changelog: str) -> str:
    """Return the changelog section of ``tag``.

    Raises:
        ValueError: The tag is not the project's version, or the section is missing or empty.
    """
    version = tomllib.loads(pyproject)["project"]["version"]
    if tag != f"v{version}":
        raise ValueError(f"the tag is {tag}, but the version in pyproject.toml is {version}")
    section = re.search(
        rf"^## \[{re.escape(version)}\][^\n]*\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL
    )
    if section is None:
        raise ValueError(f"CHANGELOG.md has no section '## [{version}]'")
    notes = section[1].strip()
    if not notes:
        raise ValueError(f"the section of {version} in CHANGELOG.md is empty")
    return notes


if __name__ == "__main__":
    try:
        print(
            release_notes(sys.argv[1], Path("pyproject.toml").read_text(), Path("CHANGELOG.md").read_text())
        )
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
