"""Memory that the runs of a user on this machine plan for containers, so that two do not plan the same.

Each reservation is a locked file. The operating system releases the lock when the process ends, even after a
crash, and the next process removes the file.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

_LOCK: Final = ".lock"


def reservations_dir() -> Path:
    """Return the folder of this user's reservations."""
    return Path(tempfile.gettempdir()) / f"ih-grpo-memory-{os.getuid()}"


@dataclass(frozen=True, slots=True)
class Reservation:
    """Memory that this process has reserved. All numbers are in bytes."""

    size: int
    others: int
    """Reserved by other runs, or earlier by this process."""
    budget: int
    """Memory that was available beside them."""
    _file: IO[str] | None

    def release(self) -> None:
        """Let other runs use the memory. The end of the process does the same."""
        if self._file is not None:
            self._file.close()


def reserve_memory(available: int, plan: Callable[[int], int]) -> Reservation:
    """Reserve memory until `Reservation.release`.

    Without a folder that belongs to this user, this run plans as if it were alone.

    Args:
        available: bytes of this machine that are not in use. Other runs may or may not use theirs already.
        plan: receives the budget, and returns the bytes to reserve.
    """
    folder = reservations_dir()
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user")
        with (folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = [values for path in folder.glob("*.json") if (values := _read(path)) is not None]
            others = sum(size for _, size in found)
            before = max((available, *(start for start, _ in found)))
            budget = max(min(available, before - others), 0)
            size = plan(budget)
            return Reservation(size, others, budget, _write(folder, available, size))
    except OSError:
        return Reservation(plan(available), 0, available, None)


def _read(path: Path) -> tuple[int, int] | None:
    """Return the memory that was available to a run, and its size. None if the run has ended."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            values = json.loads(file.read())
            return int(values["available"]), int(values["size"])
    path.unlink()
    return None


def _write(folder: Path, available: int, size: int) -> IO[str]:
    descriptor, _ = tempfile.mkstemp(suffix=".json", dir=folder)
    file = os.fdopen(descriptor, "w")
    fcntl.flock(file, fcntl.LOCK_EX)
    json.dump({"available": available, "size": size}, file)
    file.flush()
    return file
