"""Schemathesis, run as its users run it: its command, in a separate process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conformance.conftest import KEY


def schemathesis(document: str, url: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run it with ``document`` against the server at ``url``; reproducible, and bounded in examples."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", document, "--url", url]
    command += ["--header", f"Authorization: Bearer {KEY}", "--generation-database", "none", "--seed", "0"]
    command += ["--no-color", "--output-sanitize", "false", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, timeout=600, check=False
    )
