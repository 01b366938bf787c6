"""Description of the machine and of the installed versions, printed with published numbers."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def describe_machine(*packages: str) -> str:
    """Return a line about cores, memory, GPU and system, and the versions of those packages that are
    installed."""
    import torch

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    release = ".".join(platform.release().split(".")[:2])
    gpu = f"GPU {torch.cuda.get_device_name()}, " if torch.cuda.is_available() else "no GPU, "
    return (
        f"{os.cpu_count()} cores ({name}), {memory:.0f} GiB, {gpu}Linux {release}, "
        f"Python {platform.python_version()}, {', '.join(_versions(packages))}"
    )


def _versions(packages: tuple[str, ...]) -> list[str]:
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found
