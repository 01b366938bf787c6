"""What the images install follows from pyproject.toml."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy/requirements.py"
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
def test_extras_of_extras_are_followed(extras: list[str], expected: list[str]) -> None:
    assert REQUIREMENTS(PROJECT, extras) == expected


def test_an_unknown_extra_is_an_error() -> None:
    with pytest.raises(KeyError):
        REQUIREMENTS(PROJECT, ["none"])
