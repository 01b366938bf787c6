"""Say which process runs a response, so that a later one can prove it dead."""

from __future__ import annotations

import os

from service.processes import boot_id, pid_namespace, process_start


def runner_id() -> str:
    """This process, in words that no other process of any machine has."""
    pid = os.getpid()
    return f"{boot_id()}/{pid_namespace()}/{pid}/{process_start(pid)}"


def is_dead(runner: str) -> bool:
    """Is it proven that ``runner`` has ended? A process that can't be seen from here proves nothing."""
    boot, namespace, pid, start = (runner.split("/") + [""] * 4)[:4]
    if (boot, namespace) != (boot_id(), pid_namespace()):
        return False
    return pid.isdigit() and process_start(int(pid)) != start
