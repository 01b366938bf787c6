"""Interpretation of pip-audit's report by .github/audit.py."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

AUDIT = runpy.run_path(str(Path(__file__).parents[2] / ".github/audit.py"), run_name="audit")


def test_package_that_was_not_looked_up_is_a_finding() -> None:
    report = {"dependencies": [{"name": "idna", "skip_reason": "Dependency not found on PyPI"}], "fixes": []}
    assert AUDIT["findings"](report) == ["idna: not looked up: Dependency not found on PyPI"]


def test_vulnerabilities_are_reported_with_the_fixed_version() -> None:
    vulnerabilities = [{"id": "PYSEC-1", "fix_versions": ["3.7"]}, {"id": "PYSEC-2", "fix_versions": []}]
    clean = {"name": "rich", "version": "14.0", "vulns": []}
    report = {
        "dependencies": [{"name": "idna", "version": "3.6", "vulns": vulnerabilities}, clean],
        "fixes": [],
    }
    assert AUDIT["findings"](report) == [
        "idna 3.6: PYSEC-1, fixed in 3.7",
        "idna 3.6: PYSEC-2, not fixed yet",
    ]


def test_installed_packages_have_their_public_version() -> None:
    found = dict(line.split("==") for line in AUDIT["installed"](sys.executable))
    assert "pytest" in found
    assert "ih-grpo" not in found
    assert "+" not in "".join(found.values())
