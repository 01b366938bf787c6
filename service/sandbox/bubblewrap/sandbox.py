"""Sandbox of bubblewrap processes, for training on machines without Docker.

Covered: the supervisor and code run in separate namespaces, with the same seccomp profile as in Docker
and a read-only view of the Python installation.

Not covered, since there is no cgroup: memory is limited per process instead of in total, and CPU time and the
number of files are not limited. If the owner is not root, code and supervisor share a uid, and the number of
processes is not limited either.
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
from service.sandbox.isolation_checks import isolation_checks
from service.sandbox.pooled_sandbox import PooledSandbox
from service.sandbox.settings import PoolSettings
from service.sandbox.worker_program import (
    INPUTS,
    MASKED_PATHS,
    address_space_bytes,
    compile_profile,
    fresh_uid,
    image_folder,
    worker_config,
)
from service.sandbox.worker_protocol import MAX_FRAME_BYTES, Channel, Ready

_VENV = "/opt/venv"
"""Path of a virtual environment inside the sandbox. Its own path may be under /tmp, which is empty inside."""
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
    """Settings of a pool of bubblewrap processes."""

    bubblewrap: str = "bwrap"
    """Name or path of the ``bwrap`` program."""
    python: str = Field(default_factory=lambda: sys.executable)
    """Path of the interpreter that runs code. Code can import its packages."""


class BubblewrapProcess(Channel):
    """A worker under bubblewrap. Its channel is the process's stdin and stdout."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        if process.stdin is None or process.stdout is None:
            raise SandboxError("the worker has no channel")
        super().__init__(name, process.stdout, process.stdin)
        self._process = process

    @classmethod
    async def start(cls, settings: ProcessSandboxSettings) -> BubblewrapProcess:
        """Start a worker and wait until its supervisor is ready.

        Raises:
            SandboxError: it did not start. Its processes are killed.
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
        """Kill bubblewrap, which ends its whole process namespace."""
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
    """Return the command line of one worker. ``uid`` is 0 if the owner is not root."""
    disk = str(settings.disk_mb << 20)
    arguments = [settings.bubblewrap, "--die-with-parent", "--as-pid-1", "--new-session", "--clearenv"]
    arguments += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    arguments += ["--hostname", "sandbox", "--seccomp", str(seccomp), "--cap-drop", "ALL"]
    if uid:
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_KILL"):
            arguments += [
                "--cap-add",
                capability,
            ]  # for the supervisor only; code loses them with the change of uid
    else:
        arguments += ["--unshare-user"]
    sources, python = _read_only(settings)
    sources["/opt/sandbox/worker"] = str(image_folder() / "worker")
    parents = {parent for path in sources for parent in Path(path).parents[:-1]}
    for parent in sorted(parents):  # bubblewrap would create them readable by root only
        arguments += ["--perms", "0755", "--dir", str(parent)]
    for target, source in sources.items():
        arguments += ["--ro-bind-try", source, target]
    arguments += ["--proc", "/proc", "--dev", "/dev"]
    for path in MASKED_PATHS:
        if Path(path).is_dir():
            arguments += ["--tmpfs", path, "--remount-ro", path]
        elif Path(path).exists() and path.startswith("/proc/"):
            arguments += ["--ro-bind", "/dev/null", path]
    for folder in ("/tmp", "/sandbox", "/dev/shm"):  # noqa: S108
        arguments += ["--perms", "1777", "--size", disk, "--tmpfs", folder]
    arguments += ["--perms", "0755", "--size", str(settings.inputs_mb << 20), "--tmpfs", INPUTS]
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
    """Return the folders that code can read, and the interpreter's path inside.

    The folders map a path inside to a path outside. They hold the system's programs and the Python
    installation, including that of a virtual environment.
    """
    python = Path(settings.python)
    prefix, base = str(python.parent.parent), str(python.resolve().parent.parent)
    sources = {path: path for path in (*_SYSTEM_FOLDERS, base)}
    if prefix == base:
        return sources, str(python)
    return {**sources, _VENV: prefix}, f"{_VENV}/bin/{python.name}"


class ProcessSandbox(PooledSandbox):
    """A ``Sandbox`` of bubblewrap processes. It isolates less than Docker, so it is never a default."""

    def __init__(self, settings: ProcessSandboxSettings | None = None) -> None:
        self.settings = settings or ProcessSandboxSettings()
        # Without root there is no limit on processes, so the check would fail.
        checks = [c for c in isolation_checks(self.settings) if os.geteuid() == 0 or c.name != "pids"]
        super().__init__(self.settings, self._create, checks)

    async def _create(self) -> BubblewrapProcess:
        return await BubblewrapProcess.start(self.settings)

    async def start(self) -> None:
        """Fill the pool and run the isolation checks.

        Raises:
            SandboxError: bubblewrap is missing or can't create its namespaces, or a check failed.
        """
        if shutil.which(self.settings.bubblewrap) is None:
            raise SandboxError(
                f"{self.settings.bubblewrap} is not installed (Debian: apt-get install bubblewrap)"
            )
        await super().start()
