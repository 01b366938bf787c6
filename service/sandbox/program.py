"""The worker program that every backend runs: where it lies, and what it is told."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from .pool_settings import PoolSettings

_IMPORTS_MB = 384
"""Address space that Python, numpy and sympy take before any code runs."""
_FIRST_UID, _LAST_UID = 200_000, 2_000_000_000


def image_folder() -> Path:
    """The folder of the sandbox image: inside ``service`` once installed, beside it in a checkout."""
    installed = Path(__file__).parent / "image"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "sandbox_image"


def worker_config(settings: PoolSettings, uid: int) -> dict[str, Any]:
    """The argument of the worker program."""
    return {
        "uid": uid,
        "home": "/sandbox",
        "writable": ["/tmp", "/sandbox", "/dev/shm"],  # noqa: S108  inside the container
        "output_bytes": settings.output_bytes,
        "output_limit_bytes": settings.output_limit_mb << 20,
        "file_bytes": settings.disk_mb << 20,
        "open_files": settings.open_files,
        "max_lifetime_s": settings.max_lifetime_s,
    }


def address_space_bytes(settings: PoolSettings) -> int:
    """RLIMIT_AS for code where no cgroup bounds its memory alone: ``memory_mb`` beside what is imported."""
    return (settings.memory_mb + _IMPORTS_MB) << 20


def fresh_uid() -> int:
    """An even uid of its own for each sandbox: the kernel counts some limits by uid, across sandboxes."""
    return _FIRST_UID + 2 * secrets.randbelow((_LAST_UID - _FIRST_UID) // 2)
