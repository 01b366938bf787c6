"""When the environment is made, made anew, brought up to date, or left alone. Python itself is a stand-in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

# Knows what the script asks of Python, and notes in $HOME/calls when it makes a venv or runs pip.
PYTHON = """
case "$*" in
  *"-m venv "*)
    echo venv >>"$HOME/calls"
    mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
  *"pip install"*)
    echo "pip ${@: -1}" >>"$HOME/calls"
    [ ! -e "$HOME/pip-fails" ] || exit 1 ;;
esac
"""


@pytest.fixture
def python(checkout: Any) -> str:
    checkout.program("sleep", "")  # the pauses between tries
    return str(checkout.program("python-stand-in", PYTHON))


def ensure(checkout: Any, python: str, extra: str) -> list[str]:
    """Run the script; the names of what it did."""
    calls: Path = checkout.root / "calls"
    calls.unlink(missing_ok=True)
    result = checkout.run("scripts/ensure-venv", extra, PYTHON=python)
    assert result.returncode == 0, result.stderr
    return [line.split()[0] for line in calls.read_text().splitlines()] if calls.exists() else []


def test_made_once_and_then_free(checkout: Any, python: str) -> None:
    assert ensure(checkout, python, "cpu") == ["venv", "pip"]
    assert ensure(checkout, python, "cpu") == []


def test_dev_holds_the_other_extras(checkout: Any, python: str) -> None:
    ensure(checkout, python, "dev")
    assert ensure(checkout, python, "cpu") == []
    assert ensure(checkout, python, "train") == []


def test_cpu_does_not_hold_dev(checkout: Any, python: str) -> None:
    ensure(checkout, python, "cpu")
    assert ensure(checkout, python, "dev") == ["pip"]


def test_a_changed_pyproject_installs_into_the_same_venv(checkout: Any, python: str) -> None:
    ensure(checkout, python, "cpu")
    (checkout.root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert ensure(checkout, python, "cpu") == ["pip"]


def test_an_install_that_was_cut_off_is_made_anew(checkout: Any, python: str) -> None:
    ensure(checkout, python, "cpu")
    (checkout.root / ".venv" / ".installing").touch()  # what a kill during pip leaves
    assert ensure(checkout, python, "cpu") == ["venv", "pip"]


def test_a_venv_whose_python_is_gone_is_made_anew(checkout: Any, python: str) -> None:
    ensure(checkout, python, "cpu")
    (checkout.root / ".venv" / "bin" / "python").unlink()
    assert ensure(checkout, python, "cpu") == ["venv", "pip"]


def test_a_failed_install_is_told_and_tried_again(checkout: Any, python: str) -> None:
    (checkout.root / "pip-fails").touch()
    result = checkout.run("scripts/ensure-venv", "cpu", PYTHON=python)
    assert result.returncode == 1
    assert "error: pip could not install the project" in result.stderr
    (checkout.root / "pip-fails").unlink()
    assert "pip" in ensure(checkout, python, "cpu")


def test_an_old_python_is_refused_with_the_remedy(checkout: Any) -> None:
    checkout.program("id", "echo 1000")
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        checkout.program(name, "exit 1")
    result = checkout.run("scripts/ensure-venv", "cpu")
    assert result.returncode == 1
    assert "no Python 3.11 or newer was found" in result.stderr
    assert "PYTHON=" in result.stderr
