"""Generated settings and schemas agree with the code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]


def test_generated_files_are_up_to_date() -> None:
    command = [sys.executable, REPO / "scripts/generate", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
