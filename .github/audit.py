#!/usr/bin/env python3
"""audit PYTHON: is a hole known in what is installed for that Python? pip-audit must be beside this one.

pip-audit alone succeeds, saying that it found nothing, where it could look nothing up. Here that fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def installed(python: str) -> list[str]:
    """What to look up, as requirements. Local builds (torch 2.13.0+cpu) are known by their public version."""
    command = [
        python,
        "-m",
        "pip",
        "list",
        "--format=json",
        "--exclude=ih-grpo",
        "--exclude=pip",
        "--disable-pip-version-check",
    ]
    listed = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return [f"{package['name']}=={package['version'].partition('+')[0]}" for package in listed]


def findings(report: dict[str, Any]) -> list[str]:
    """What is wrong by pip-audit's JSON: known holes, and packages that nothing is known of."""
    found = []
    for package in report["dependencies"]:
        if "skip_reason" in package:
            found.append(f"{package['name']}: not looked up: {package['skip_reason']}")
        for hole in package.get("vulns", []):
            mended = ", ".join(hole["fix_versions"]) or "no version yet"
            found.append(f"{package['name']} {package['version']}: {hole['id']}, mended in {mended}")
    return found


def main(python: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        requirements, report = Path(folder, "requirements.txt"), Path(folder, "report.json")
        requirements.write_text("\n".join(installed(python)))
        arguments = [
            "-r",
            str(requirements),
            "--no-deps",
            "--disable-pip",
            "--format=json",
            "--output",
            str(report),
        ]
        subprocess.run([sys.executable, "-m", "pip_audit", *arguments], check=False)
        if not report.is_file():
            print(
                "error: pip-audit reached no database, so nothing is known. Run this again.", file=sys.stderr
            )
            return 1
        audited = json.loads(report.read_text())
    found = findings(audited)
    print("\n".join(found) or f"no hole is known in {len(audited['dependencies'])} packages")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
