"""The checks that .github/release_notes.py makes before a release."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".github/release_notes.py"
release_notes = runpy.run_path(str(SCRIPT), run_name="release_notes")["release_notes"]

PYPROJECT = '[project]\nversion = "1.2.0"\n'
CHANGELOG = """# Changelog

## [Unreleased]

- Not yet.

## [1.2.0] - 2026-12-01

### Added

- Something.

## [1.1.0] - 2026-11-01

- Old.
"""


def test_returns_the_section_of_the_tag() -> None:
    assert release_notes("v1.2.0", PYPROJECT, CHANGELOG) == "### Added\n\n- Something."


def test_returns_the_last_section() -> None:
    assert release_notes("v1.1.0", PYPROJECT.replace("1.2", "1.1"), CHANGELOG) == "- Old."


def test_rejects_a_tag_of_another_version() -> None:
    with pytest.raises(ValueError, match=r"tag is v1\.3\.0, but the version in pyproject\.toml is 1\.2\.0"):
        release_notes("v1.3.0", PYPROJECT, CHANGELOG)


def test_rejects_a_missing_section() -> None:
    with pytest.raises(ValueError, match="no section"):
        release_notes("v1.2.1", PYPROJECT.replace("1.2.0", "1.2.1"), CHANGELOG)


def test_rejects_an_empty_section() -> None:
    with pytest.raises(ValueError, match="empty"):
        release_notes("v1.2.0", PYPROJECT, CHANGELOG.replace("### Added\n\n- Something.\n", ""))
