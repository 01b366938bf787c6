"""A copy of the scripts to run, and a folder of fake programs that comes first in PATH."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


class Checkout:
    """A folder with the scripts, as after a clone, and an environment without this machine's settings."""

    def __init__(self, root: Path) -> None:
        self.root = root / "clone"
        self.programs = root / "programs"
        self.programs.mkdir(parents=True)
        shutil.copytree(REPO / "scripts", self.root / "scripts")
        (self.root / "pyproject.toml").write_text("[project]\n")

    def program(self, name: str, body: str) -> Path:
        """Add a shell script to PATH that shadows any real program of that name."""
        path = self.programs / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
        return path

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a script by its path in the clone. Never raises for its exit code."""
        path = f"{self.programs}:{os.environ['PATH']}"
        return subprocess.run(
            [self.root / command[0], *command[1:]],
            env={"PATH": path, "HOME": str(self.root), **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)
