#!/usr/bin/env python3
"""Report known vulnerabilities in the packages of a Python environment: ``audit.py PYTHON``.

Run it with a Python that has pip-audit. pip-audit alone succeeds if it could not look a package up; here that
is an error.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def installed(python: str) -> list[str]:
    """Return the installed packages as requirements. Local builds (torch +cpu) get their public version."""
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
    """Return a line per vulnerability, and per package that was not looked up, of pip-audit's report."""
    found = []
    for package in report["dependencies"]:
        if "skip_reason" in package:
            found.append(f"{package['name']}: not looked up: {package['skip_reason']}")
        for vulnerability in package.get("vulns", []):
            fixed = ", ".join(vulnerability["fix_versions"])
            hint = f"fixed in {fixed}" if fixed else "not fixed yet"
            found.append(f"{package['name']} {package['version']}: {vulnerability['id']}, {hint}")
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
            print("error: pip-audit reached no vulnerability database. Try again.", file=sys.stderr)
            return 1
        audited = json.loads(report.read_text())
    found = findings(audited)
    print("\n".join(found) or f"no known vulnerabilities in {len(audited['dependencies'])} packages")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
