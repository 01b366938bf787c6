"""Creating, repeating, updating and keeping the environment in ensure-venv. Python itself is a fake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

# Supports what the script asks of Python, and records in $HOME/calls when it creates a venv or runs pip.
PYTHON = """
case "$*" in
  *"-m venv "*)
    echo venv >>"$HOME/calls"
    mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
  *"pip install"*)
    case "$*" in
      *--require-hashes*) echo "locked ${@: -1}" >>"$HOME/calls"; [ ! -e "$HOME/lock-fails" ] || exit 1 ;;
      *torch.txt) echo "torch" >>"$HOME/calls" ;;
      *) echo "pip ${@: -1}" >>"$HOME/calls" ;;
    esac
    [ ! -e "$HOME/pip-fails" ] || exit 1 ;;
esac
"""


@pytest.fixture
def python(checkout: Any) -> str:
    checkout.program("sleep", "")  # the pauses between tries
    return str(checkout.program("fake-python", PYTHON))


@pytest.fixture
def lock(checkout: Any) -> Path:
    """The lock of the extra ``cpu``; without it the scripts install unlocked."""
    folder: Path = checkout.root / "requirements"
    folder.mkdir()
    (folder / "torch.txt").write_text("torch==2\n")
    (folder / "cpu.txt").write_text("six==1\n")
    return folder / "cpu.txt"


def ensure(checkout: Any, python: str, extra: str, **env: str) -> list[str]:
    """Run the script. Returns the names of the recorded calls."""
    calls: Path = checkout.root / "calls"
    calls.unlink(missing_ok=True)
    result = checkout.run("scripts/ensure-venv", extra, PYTHON=python, **env)
    assert result.returncode == 0, result.stderr
    return [line.split()[0] for line in calls.read_text().splitlines()] if calls.exists() else []


def test_second_run_is_a_noop(checkout: Any, python: str) -> None:
    assert ensure(checkout, python, "cpu") == ["venv", "pip"]
    assert ensure(checkout, python, "cpu") == []


def test_dev_contains_the_other_extras(checkout: Any, python: str) -> None:
    ensure(checkout, python, "dev")
    assert ensure(checkout, python, "cpu") == []
    assert ensure(checkout, python, "train") == []


def test_cpu_does_not_contain_dev(checkout: Any, python: str) -> None:
    ensure(checkout, python, "cpu")
    assert ensure(checkout, python, "dev") == ["pip"]


def test_changed_pyproject_updates_the_same_venv(checkout: Any, python: str) -> None:
    ensure(checkout, python, "cpu")
    (checkout.root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert ensure(checkout, python, "cpu") == ["pip"]


def test_interrupted_installation_starts_over(checkout: Any, python: str) -> None:
    ensure(checkout, python, "cpu")
    (checkout.root / ".venv" / ".installing").touch()  # a killed pip leaves this
    assert ensure(checkout, python, "cpu") == ["venv", "pip"]


def test_venv_with_missing_python_starts_over(checkout: Any, python: str) -> None:
    ensure(checkout, python, "cpu")
    (checkout.root / ".venv" / "bin" / "python").unlink()
    assert ensure(checkout, python, "cpu") == ["venv", "pip"]


def test_failed_installation_is_reported_and_retried(checkout: Any, python: str) -> None:
    (checkout.root / "pip-fails").touch()
    result = checkout.run("scripts/ensure-venv", "cpu", PYTHON=python)
    assert result.returncode == 1
    assert "error: pip could not install the project" in result.stderr
    (checkout.root / "pip-fails").unlink()
    assert "pip" in ensure(checkout, python, "cpu")


def test_installs_the_locked_versions(checkout: Any, python: str, lock: Path) -> None:
    assert ensure(checkout, python, "cpu") == ["venv", "locked", "torch", "pip"]
    assert ensure(checkout, python, "cpu") == []
    lock.write_text("six==2\n")
    assert ensure(checkout, python, "cpu") == ["locked", "torch", "pip"]


def test_ihgrpo_unlocked_ignores_the_lock(checkout: Any, python: str, lock: Path) -> None:
    assert ensure(checkout, python, "cpu", IHGRPO_UNLOCKED="1") == ["venv", "pip"]
    assert ensure(checkout, python, "cpu") == ["locked", "torch", "pip"]


def test_falls_back_if_the_lock_cannot_be_installed(checkout: Any, python: str, lock: Path) -> None:
    (checkout.root / "lock-fails").touch()
    result = checkout.run("scripts/ensure-venv", "cpu", PYTHON=python)
    assert result.returncode == 0
    assert "the locked versions could not be installed" in result.stderr
    calls = (checkout.root / "calls").read_text().split("\n")
    assert calls[:4] == ["venv", *[f"locked {lock}"] * 3]
    assert calls[4] == f"pip {checkout.root}[cpu]"


def test_old_python_is_rejected_with_a_hint(checkout: Any) -> None:
    checkout.program("id", "echo 1000")
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        checkout.program(name, "exit 1")
    result = checkout.run("scripts/ensure-venv", "cpu")
    assert result.returncode == 1
    assert "no Python 3.11 or newer was found" in result.stderr
    assert "PYTHON=" in result.stderr
