from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.server.settings import misspelt

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("IHGRPO_PROT", "IHGRPO_PORT"),
        ("IHGRPO_APIKEYS", "IHGRPO_API_KEYS"),
        ("IHGRPO_MAX_SLOT", "IHGRPO_MAX_SLOTS"),
    ],
)
def test_a_name_that_is_nearly_a_settings_is_told(variable: str, meant: str) -> None:
    assert list(misspelt({variable: "1"})) == [f"{variable} is no setting; did you mean {meant}?"]


def test_nothing_is_said_of_what_is_right_or_another_programs() -> None:
    assert not list(misspelt({"IHGRPO_PORT": "1", "IHGRPO_RUNNER_TOKEN": "x", "IHGRPO_X": "", "PROT": "1"}))


def test_nor_of_any_variable_that_this_project_knows() -> None:
    """Those of tests, scripts, the stack and other commands are no settings of the server."""
    folders = [REPO / name for name in ("service", "trainer", "scripts", "deploy", "docs")]
    files = [
        path for folder in folders for path in folder.rglob("*") if path.suffix in ("", ".py", ".md", ".sh")
    ]
    text = "".join(path.read_text() for path in files if path.is_file() and "__pycache__" not in path.parts)
    known = set(re.findall(r"\bIHGRPO_[A-Z_]+[A-Z]\b", text + (REPO / "docker-compose.yml").read_text()))
    assert len(known) > 30
    assert not list(misspelt(dict.fromkeys(known, "1")))
