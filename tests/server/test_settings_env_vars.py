from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.server.settings import unknown_env_vars

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("IHGRPO_PROT", "IHGRPO_PORT"),
        ("IHGRPO_APIKEYS", "IHGRPO_API_KEYS"),
        ("IHGRPO_MAX_SLOT", "IHGRPO_MAX_SLOTS"),
    ],
)
def test_suggests_setting_for_misspelt_variable(variable: str, meant: str) -> None:
    assert list(unknown_env_vars({variable: "1"})) == [f"Unknown setting {variable}. Did you mean {meant}?"]


def test_ignores_correct_and_foreign_variables() -> None:
    assert not list(
        unknown_env_vars({"IHGRPO_PORT": "1", "IHGRPO_RUNNER_TOKEN": "x", "IHGRPO_X": "", "PROT": "1"})
    )


def test_ignores_every_variable_of_the_project() -> None:
    """Variables of tests, scripts, the stack and other commands are not reported."""
    folders = [REPO / name for name in ("service", "trainer", "scripts", "deploy", "docs")]
    files = [
        path for folder in folders for path in folder.rglob("*") if path.suffix in ("", ".py", ".md", ".sh")
    ]
    text = "".join(path.read_text() for path in files if path.is_file() and "__pycache__" not in path.parts)
    known = set(re.findall(r"\bIHGRPO_[A-Z_]+[A-Z]\b", text + (REPO / "docker-compose.yml").read_text()))
    assert len(known) > 30
    assert not list(unknown_env_vars(dict.fromkeys(known, "1")))
