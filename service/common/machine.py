"""Memory and processor cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path


def available_memory() -> int:
    """Available memory in bytes, of the machine or of the surrounding container."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        if Path(limit).is_file() and (text := Path(limit).read_text().strip()) != "max":
            free = min(free, int(text) - int(Path(used).read_text()))
    return free


def physical_cores() -> int:
    """Number of cores that this process may run on.

    The two hardware threads of a core count once: they share its arithmetic units, so a second thread of
    matrix products slows the first one.
    """
    cores = set()
    allowed = os.sched_getaffinity(0)
    for number in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            return len(allowed)
    return len(cores)
