"""Process handling of the supervisor: namespace processes, running processes, kills and exit statuses."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

from .protocol import HEADER, NO_TOKEN

_CREDENTIALS = struct.Struct("3i")


class WorkerError(Exception):
    """The supervisor can no longer guarantee the state of the container. It exits on this error."""


class NamespaceProcess:
    """Handle of one namespace process: its pid, control socket and exit status."""

    def __init__(self, control: socket.socket, pid: int = 0) -> None:
        self.pid = pid
        """0 until the first message of the process; then the sender's pid as reported by the kernel."""
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """The wait status, once the process has ended."""
        self._control = control
        self.token = NO_TOKEN
        """Token of the last command, with which the next reply must begin."""
        self._received = bytearray()
        self._changed = asyncio.Event()
        self._ended = False
        control.setblocking(False)
        control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        asyncio.get_running_loop().add_reader(control, self._read)

    def _read(self) -> None:
        try:
            data, ancillary, *_ = self._control.recvmsg(64, socket.CMSG_SPACE(_CREDENTIALS.size))
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and not self.pid:
                self.pid = _CREDENTIALS.unpack(payload[: _CREDENTIALS.size])[0]
        self._received = (self._received + data)[:64]  # replies are shorter
        if not data:
            self._ended = True
            asyncio.get_running_loop().remove_reader(self._control)
        self._changed.set()

    async def command(self, name: bytes, payload: bytes = b"", fds: Iterable[int] = ()) -> bytes:
        """Send a command and return its token. A process that has ended is noticed by its exit, not here.

        Raises:
            WorkerError: the process has sent a message that answers no command.
        """
        self._read()
        if self._received:
            raise WorkerError("a namespace process sent an unexpected message")
        self.token = os.urandom(8)
        with contextlib.suppress(OSError):
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            self._control.sendmsg(
                [HEADER.pack(name, self.token, len(payload))], rights if rights[0][2] else []
            )
            await asyncio.get_running_loop().sock_sendall(self._control, payload)
        return self.token

    async def reply(self) -> bytes:
        """Return the one-byte reply to the last command, or nothing if the process closed its socket or died.

        Raises:
            WorkerError: the message is not a reply to that command.
        """
        size = len(self.token) + 1
        while len(self._received) < size and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        if len(self._received) < size:
            return b""
        message, self._received = bytes(self._received), bytearray()
        if len(message) != size or not message.startswith(self.token):
            raise WorkerError("a namespace process forged a reply")
        return message[-1:]

    def kill(self) -> None:
        if self.pid > 1 and not self.exited.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()


def living(keep: Iterable[int]) -> list[int]:
    """Return the pids of all processes except the supervisor, ``keep`` and zombies."""
    excluded = {os.getpid(), *keep}
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in excluded:
            continue
        with contextlib.suppress(OSError):
            stat = Path("/proc", entry, "stat").read_bytes()
            if stat[stat.rindex(b")") + 2 : stat.rindex(b")") + 3] not in (b"Z", b"X"):
                found.append(int(entry))
    return found


def threads(pid: int) -> int:
    """Return the number of threads of a process; 0 if it has ended."""
    with contextlib.suppress(OSError, IndexError):
        status = Path("/proc", str(pid), "status").read_bytes()
        return int(status.split(b"\nThreads:", 1)[1].split(b"\n", 1)[0])
    return 0


async def kill_all_except(keep: Iterable[int], uid: int) -> None:
    """Kill every process except the supervisor and ``keep``.

    Raises:
        WorkerError: a process could not be killed.
    """
    keep = list(keep)
    for attempt in range(200):
        strays = living(keep)
        if not strays:
            return
        if uid:
            # One system call kills all of them, so forks can't outrun it. After a fork bomb there may be no
            # process left to run it in; then the kills below make room for the next attempt.
            with contextlib.suppress(OSError):
                await as_user(uid, lambda: os.kill(-1, signal.SIGKILL), seconds=2)
        for pid in living(keep):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.0005 * min(attempt, 20))
    raise WorkerError("some processes could not be killed")


async def as_user(uid: int, action: Callable[[], object], *, seconds: float) -> bool:
    """Run ``action`` in a fork with the uid of the code. Return whether it succeeded within ``seconds``."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if uid:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            action()
            status = 0
        except BaseException:
            status = 1
        finally:
            os._exit(status)
    ended = await ended_within(pid, seconds)
    return ended == 0


_statuses: dict[int, asyncio.Future[int]] = {}


async def ended_within(pid: int, seconds: float) -> int | None:
    """Return the wait status of a child, or kill it after ``seconds`` and return None."""
    future = _statuses[pid] = asyncio.get_running_loop().create_future()
    try:
        return await asyncio.wait_for(future, seconds)
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        return None
    finally:
        _statuses.pop(pid, None)


def reap(processes: Iterable[NamespaceProcess]) -> None:
    """Collect the exit statuses of all children that ended, including adopted ones."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        for process in processes:
            if process.pid == pid and not process.exited.done():
                process.exited.set_result(status)
        if pid in _statuses and not _statuses[pid].done():
            _statuses[pid].set_result(status)


def oom_kills() -> int:
    """Return how many processes of this cgroup the kernel killed at the memory limit (cgroup v1 or v2)."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        with contextlib.suppress(OSError):
            for line in Path(path).read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0
