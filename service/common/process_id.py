"""Process identity, so that a later process can prove that this one has ended."""

from __future__ import annotations

import os
from pathlib import Path


def process_start(pid: int) -> str | None:
    """Return a process's start time in clock ticks since boot, None if it does not exist. With the pid it is
    unique."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return stat[stat.rindex(b")") + 2 :].split()[19].decode()


def boot_id() -> str:
    """Return the id of the machine's current boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def pid_namespace() -> str:
    """Return the id of this process's pid namespace."""
    return os.readlink("/proc/self/ns/pid")  # noqa: PTH115  not a path but "pid:[number]"
