"""Requirements of the images, derived from pyproject.toml and the locked versions."""

from __future__ import annotations

import re
import runpy
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPO = Path(__file__).parents[2]
SCRIPT = REPO / "deploy/requirements.py"
REQUIREMENTS = runpy.run_path(str(SCRIPT), run_name="requirements")["requirements"]
PROJECT = {
    "name": "ours",
    "dependencies": ["a>=1"],
    "optional-dependencies": {
        "cpu": ["torch"],
        "train": ["ours[cpu]", "trl"],
        "all": ["ours[train,cpu]", "b"],
    },
}


@pytest.mark.parametrize(
    ("extras", "expected"),
    [
        ([], ["a>=1"]),
        (["cpu"], ["a>=1", "torch"]),
        (["all"], ["a>=1", "b", "torch", "trl"]),
    ],
)
def test_resolves_extras_of_extras(extras: list[str], expected: list[str]) -> None:
    assert REQUIREMENTS(PROJECT, extras) == expected


def test_rejects_an_unknown_extra() -> None:
    with pytest.raises(KeyError):
        REQUIREMENTS(PROJECT, ["none"])


def test_constraints_are_the_locked_versions_without_hashes() -> None:
    dockerfile = (REPO / "deploy/Dockerfile").read_text()
    (expression,) = re.findall(r"sed -E '([^']+)'", dockerfile)
    files = [REPO / "requirements/dev.txt", REPO / "requirements/torch.txt"]
    result = subprocess.run(["sed", "-E", expression, *files], capture_output=True, text=True, check=True)
    pins = [Requirement(line) for line in result.stdout.splitlines()]  # raises if anything else is left
    assert all(re.fullmatch("==[^,]+", str(pin.specifier)) for pin in pins)
    assert {"torch", "fastapi", "hatchling", "asyncpg"} <= {pin.name for pin in pins}
