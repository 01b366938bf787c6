"""Freezer of containers: stops all processes of a container through its cgroup, version 1 or 2.

No signal resumes a frozen process, unlike one that was stopped with SIGSTOP. Freezing and thawing are writes
to one file and take a fraction of a millisecond. ``docker pause`` does the same, but starts a program each
time and takes about 15 ms.

A frozen supervisor does not notice that its owner has died. Therefore a guard process thaws all containers
then, and their supervisors exit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger(__name__)

DEFAULT_ROOT: Final = Path("/sys/fs/cgroup")
_CHECKS: Final = 100
_GUARD: Final = """
import sys
thaws = {}
for line in sys.stdin:
    sign, value, path = line.rstrip("\\n").split(" ", 2)
    if sign == "+":
        thaws[path] = value
    else:
        thaws.pop(path, None)
for path, value in thaws.items():
    try:
        with open(path, "w") as file:
            file.write(value)
    except OSError:
        pass
"""


@dataclass(frozen=True, slots=True)
class FreezerCgroup:
    """The cgroup of one container, by which it can be frozen."""

    folder: Path
    version: int

    @classmethod
    def find(cls, root: Path, container: str) -> FreezerCgroup | None:
        """Return the cgroup of a container of Docker or Podman under either driver; None if not found."""
        names = (
            f"docker/{container}",
            f"system.slice/docker-{container}.scope",
            f"libpod_parent/libpod-{container}",
            f"machine.slice/libpod-{container}.scope",
        )
        for folder, version in ((root / "freezer", 1), (root, 2)):
            for name in names:
                found = cls(folder / name, version)
                if found.state_file.exists():
                    return found
        return None

    @property
    def state_file(self) -> Path:
        return self.folder / ("freezer.state" if self.version == 1 else "cgroup.freeze")

    @property
    def thaw_value(self) -> str:
        return "THAWED" if self.version == 1 else "0"

    def freeze(self) -> None:
        """Begin to freeze all processes.

        Raises:
            OSError: the cgroup is gone or not writable.
        """
        self.state_file.write_text("FROZEN" if self.version == 1 else "1")

    def thaw(self) -> None:
        """Let all processes continue.

        Raises:
            OSError: the cgroup is gone or not writable.
        """
        self.state_file.write_text(self.thaw_value)

    def is_frozen(self) -> bool:
        """Return whether all processes are frozen.

        Raises:
            OSError: the cgroup is gone.
        """
        if self.version == 1:
            return self.state_file.read_text().strip() == "FROZEN"
        return "frozen 1" in (self.folder / "cgroup.events").read_text().splitlines()

    async def frozen_soon(self) -> bool:
        """Wait until all processes are frozen. Return False if some still run after about half a second.

        Raises:
            OSError: the cgroup is gone.
        """
        for attempt in range(_CHECKS):
            if self.is_frozen():
                return True
            await asyncio.sleep(0.0001 * min(attempt + 1, 50))
        return False


class Freezer:
    """Freezer of the containers of one owner. ``unavailable`` is the reason why it is not used."""

    def __init__(self, root: Path = DEFAULT_ROOT, *, unavailable: str | None = None) -> None:
        self.unavailable = unavailable
        self._root = root
        self._proven = False
        self._guard: subprocess.Popen[bytes] | None = None

    async def attach(self, container: str) -> FreezerCgroup | None:
        """Return the cgroup of a container that has just started; None if the freezer is not available.

        The first container is frozen and thawed once as a proof.
        """
        if self.unavailable is not None:
            return None
        cgroup = FreezerCgroup.find(self._root, container)
        if cgroup is None:
            self.disable(f"no cgroup of container {container[:12]} is under {self._root}")
            return None
        try:
            if not self._proven:
                await self._prove(cgroup)
            self._report_to_guard("+", cgroup)
        except OSError as error:
            self.disable(f"{cgroup.state_file}: {error.strerror or error}")
        return cgroup if self.unavailable is None else None

    def detach(self, cgroup: FreezerCgroup) -> None:
        """Forget a container that is being removed."""
        if self._guard is not None:
            with contextlib.suppress(OSError):
                self._report_to_guard("-", cgroup)

    def thaw(self, container: str) -> None:
        """Thaw a container of any owner, so that it can be removed. Never raises."""
        if (cgroup := FreezerCgroup.find(self._root, container)) is not None:
            with contextlib.suppress(OSError):
                cgroup.thaw()

    def close(self) -> None:
        """End the guard process."""
        if self._guard is not None and self._guard.stdin is not None:
            with contextlib.suppress(OSError):
                self._guard.stdin.close()
            self._guard.wait()
            self._guard = None

    async def _prove(self, cgroup: FreezerCgroup) -> None:
        try:
            cgroup.freeze()
            if not await cgroup.frozen_soon():
                self.disable(f"{cgroup.state_file} did not freeze the container")
                return
        finally:
            cgroup.thaw()
        self._proven = True

    def disable(self, reason: str) -> None:
        """Freeze no containers that start later. Log the first reason."""
        if self.unavailable is not None:
            return
        self.unavailable = reason
        log.warning(
            "sandbox_freezer_unavailable",
            reason=reason,
            consequence="between two runs code is stopped with SIGSTOP instead",
        )

    def _report_to_guard(self, sign: str, cgroup: FreezerCgroup) -> None:
        """Report to the guard process that a container exists (+) or is removed (-).

        Raises:
            OSError: it has ended or does not read.
        """
        if self._guard is None:
            self._guard = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-S", "-c", _GUARD],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
                bufsize=0,
            )
            assert self._guard.stdin is not None  # noqa: S101
            os.set_blocking(self._guard.stdin.fileno(), False)
        stdin = self._guard.stdin
        assert stdin is not None  # noqa: S101
        if not stdin.write(f"{sign} {cgroup.thaw_value} {cgroup.state_file}\n".encode()):
            raise BlockingIOError("the guard process does not read")
