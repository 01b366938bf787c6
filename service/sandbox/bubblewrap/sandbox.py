"""Sessions under bubblewrap, for machines without Docker. For training only.

The same supervisor, in namespaces of its own, with the same seccomp profile and a read-only view of the
Python installation. What it lacks is a cgroup: memory is limited for each process and not for all together,
the CPU and the number of files are not limited, and where the runner is not root, code and supervisor share
a uid.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from service.sandbox.base import SandboxError
from service.sandbox.isolation_checks import probes
from service.sandbox.session import PooledSandbox
from service.sandbox.settings import PoolSettings
from service.sandbox.worker_program import (
    address_space_bytes,
    compile_profile,
    fresh_uid,
    image_folder,
    worker_config,
)
from service.sandbox.worker_protocol import MAX_FRAME_BYTES, Channel, Ready

_VENV = "/opt/venv"
"""Where a virtual environment is seen inside: its own path may lie under /tmp, which is empty there."""
_SYSTEM_FOLDERS = (
    "/usr",
    "/bin",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/localtime",
)


class ProcessSandboxSettings(PoolSettings):
    """A pool of bubblewrap processes."""

    bubblewrap: str = "bwrap"
    """The program, by name or path."""
    python: str = Field(default_factory=lambda: sys.executable)
    """The interpreter that runs code. Its packages are those that code can import."""


class Process(Channel):
    """A worker under bubblewrap; its channel is the process's stdin and stdout."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        if process.stdin is None or process.stdout is None:
            raise SandboxError("the worker has no channel")
        super().__init__(name, process.stdout, process.stdin)
        self._process = process

    @classmethod
    async def start(cls, settings: ProcessSandboxSettings) -> Process:
        """A worker whose supervisor is ready.

        Raises:
            SandboxError: it did not come up; nothing is left of it.
        """
        name = f"process-{secrets.token_hex(6)}"
        with _seccomp_program() as program:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command(settings, program, fresh_uid() if os.geteuid() == 0 else 0),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL,
                    pass_fds=(program,),
                    start_new_session=True,
                    limit=2 * MAX_FRAME_BYTES,
                )
            except OSError as error:
                raise SandboxError(f"{settings.bubblewrap} could not be started: {error}") from error
        worker = cls(name, process)
        try:
            async with asyncio.timeout(settings.start_timeout_s):
                frame = await worker.receive()
            if not isinstance(frame, Ready):
                raise SandboxError(f"worker {name}: the first frame was {frame.op!r}, not 'ready'")
        except BaseException as error:
            await worker.destroy()
            if isinstance(error, TimeoutError):
                raise SandboxError(
                    f"worker {name} was not ready after {settings.start_timeout_s} s"
                ) from error
            raise
        return worker

    async def destroy(self) -> None:
        """Kill bubblewrap; its process namespace dies with it."""
        self.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()


@contextlib.contextmanager
def _seccomp_program() -> Iterator[int]:
    program = compile_profile(image_folder() / "seccomp.json")
    try:
        yield program
    finally:
        os.close(program)


def command(settings: ProcessSandboxSettings, seccomp: int, uid: int) -> list[str]:
    """The command line of one worker. ``uid`` 0: the runner is not root, and only one uid can be had."""
    disk = str(settings.disk_mb << 20)
    arguments = [settings.bubblewrap, "--die-with-parent", "--as-pid-1", "--new-session", "--clearenv"]
    arguments += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    arguments += ["--hostname", "sandbox", "--seccomp", str(seccomp), "--cap-drop", "ALL"]
    if uid:
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_KILL"):
            arguments += ["--cap-add", capability]  # for the supervisor alone; code loses them with its uid
    else:
        arguments += ["--unshare-user"]
    sources, python = _read_only(settings)
    sources["/opt/sandbox/worker"] = str(image_folder() / "worker")
    parents = {parent for path in sources for parent in Path(path).parents[:-1]}
    for parent in sorted(parents):  # bubblewrap would make them for root alone
        arguments += ["--perms", "0755", "--dir", str(parent)]
    for target, source in sources.items():
        arguments += ["--ro-bind-try", source, target]
    arguments += ["--proc", "/proc", "--dev", "/dev"]
    for folder in ("/tmp", "/sandbox", "/dev/shm"):  # noqa: S108
        arguments += ["--perms", "1777", "--size", disk, "--tmpfs", folder]
    arguments += ["--remount-ro", "/", "--chdir", "/opt/sandbox"]
    for name, value in (("PYTHONHASHSEED", "0"), ("LANG", "C.UTF-8"), ("OMP_NUM_THREADS", "1")):
        arguments += ["--setenv", name, value]
    limits = {
        **worker_config(settings, uid),
        "address_space_bytes": address_space_bytes(settings),
        "processes": settings.pids if uid else 0,
    }
    return [*arguments, python, "-B", "-s", "-W", "ignore", "-m", "worker", json.dumps(limits)]


def _read_only(settings: ProcessSandboxSettings) -> tuple[dict[str, str], str]:
    """What code may read (path inside to path outside), and the interpreter's path inside.

    It sees the system's programs and the Python installation, of a virtual environment too.
    """
    python = Path(settings.python)
    prefix, base = str(python.parent.parent), str(python.resolve().parent.parent)
    sources = {path: path for path in (*_SYSTEM_FOLDERS, base)}
    if prefix == base:
        return sources, str(python)
    return {**sources, _VENV: prefix}, f"{_VENV}/bin/{python.name}"


class ProcessSandbox(PooledSandbox):
    """A ``Sandbox`` under bubblewrap; weaker than containers, so only ever chosen by name."""

    def __init__(self, settings: ProcessSandboxSettings | None = None) -> None:
        self.settings = settings or ProcessSandboxSettings()
        # Without root there is no limit on processes: that wall is known to be missing.
        walls = [wall for wall in probes(self.settings) if os.geteuid() == 0 or wall.wall != "pids"]
        super().__init__(self.settings, self._create, walls)

    async def _create(self) -> Process:
        return await Process.start(self.settings)

    async def start(self) -> None:
        """As every pool.

        Raises:
            SandboxError: bubblewrap is missing or can't make its namespaces, or a proof failed.
        """
        if shutil.which(self.settings.bubblewrap) is None:
            raise SandboxError(
                f"{self.settings.bubblewrap} is not installed (Debian: apt-get install bubblewrap)"
            )
        await super().start()
