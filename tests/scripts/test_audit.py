"""What scripts/audit makes of pip-audit's report."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

AUDIT = runpy.run_path(str(Path(__file__).parents[2] / "scripts/audit"), run_name="audit")


def test_a_package_that_could_not_be_looked_up_is_no_clean_bill() -> None:
    report = {"dependencies": [{"name": "idna", "skip_reason": "Dependency not found on PyPI"}], "fixes": []}
    assert AUDIT["findings"](report) == ["idna: not looked up: Dependency not found on PyPI"]


def test_holes_are_told_with_their_remedy() -> None:
    holes = [{"id": "PYSEC-1", "fix_versions": ["3.7"]}, {"id": "PYSEC-2", "fix_versions": []}]
    clean = {"name": "rich", "version": "14.0", "vulns": []}
    report = {"dependencies": [{"name": "idna", "version": "3.6", "vulns": holes}, clean], "fixes": []}
    assert AUDIT["findings"](report) == [
        "idna 3.6: PYSEC-1, mended in 3.7",
        "idna 3.6: PYSEC-2, mended in no version yet",
    ]


def test_what_is_installed_is_looked_up_by_its_public_version() -> None:
    found = dict(line.split("==") for line in AUDIT["installed"](sys.executable))
    assert "pytest" in found
    assert "ih-grpo" not in found
    assert "+" not in "".join(found.values())
