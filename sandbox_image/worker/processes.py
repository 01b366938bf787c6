"""Processes as the supervisor sees them: what lives, how it ended, and how to end it."""

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

from .namespace import HEADER, NO_TOKEN

_CREDENTIALS = struct.Struct("3i")


class WorkerError(Exception):
    """The container is no longer in a state that the supervisor can vouch for."""


class NamespaceProcess:
    """The supervisor's handle on one namespace process: its pid, its control socket, its end."""

    def __init__(self, control: socket.socket, pid: int = 0) -> None:
        self.pid = pid
        """0 until the process has said hello; then the kernel's word for who said it."""
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """The wait status, once the process is dead and its pid was known."""
        self._control = control
        self.token = NO_TOKEN
        """What the next reply must begin with: the token of the command that it answers."""
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
        self._received = (self._received + data)[:64]  # no reply is longer
        if not data:
            self._ended = True
            asyncio.get_running_loop().remove_reader(self._control)
        self._changed.set()

    async def command(self, name: bytes, payload: bytes = b"", fds: Iterable[int] = ()) -> bytes:
        """Send a command and return its token; a process that is gone shows itself by its exit, not here.

        Raises:
            WorkerError: the process has said something unasked.
        """
        self._read()
        if self._received:
            raise WorkerError("a namespace process spoke unasked")
        self.token = os.urandom(8)
        with contextlib.suppress(OSError):
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            self._control.sendmsg(
                [HEADER.pack(name, self.token, len(payload))], rights if rights[0][2] else []
            )
            await asyncio.get_running_loop().sock_sendall(self._control, payload)
        return self.token

    async def reply(self) -> bytes:
        """The one-byte reply to the last command; empty once the process has closed its end or died.

        Raises:
            WorkerError: it is not a reply to that command.
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
    """Pids of all processes here but the supervisor and ``keep``; zombies don't count."""
    spared = {os.getpid(), *keep}
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in spared:
            continue
        with contextlib.suppress(OSError):
            stat = Path("/proc", entry, "stat").read_bytes()
            if stat[stat.rindex(b")") + 2 : stat.rindex(b")") + 3] not in (b"Z", b"X"):
                found.append(int(entry))
    return found


def threads(pid: int) -> int:
    """How many threads the process has, by the kernel's count."""
    with contextlib.suppress(OSError, IndexError):
        status = Path("/proc", str(pid), "status").read_bytes()
        return int(status.split(b"\nThreads:", 1)[1].split(b"\n", 1)[0])
    return 0


async def kill_all_but(keep: Iterable[int], uid: int) -> None:
    """Kill every process but the supervisor and ``keep``.

    Raises:
        WorkerError: some process could not be ended.
    """
    keep = list(keep)
    for attempt in range(200):
        strays = living(keep)
        if not strays:
            return
        if uid:
            # One system call for all of them: nothing that forks can run ahead of it. A fork bomb may have
            # left no process for us to do it in; then those killed below make room for the next attempt.
            with contextlib.suppress(OSError):
                await as_user(uid, lambda: os.kill(-1, signal.SIGKILL), seconds=2)
        for pid in living(keep):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.0005 * min(attempt, 20))
    raise WorkerError("processes outlive SIGKILL")


async def as_user(uid: int, action: Callable[[], object], *, seconds: float) -> bool:
    """Run ``action`` in a fork that has the code's uid and no rights. True if it came to its end in time."""
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
    """Wait status of a child of the supervisor; after ``seconds`` it is killed and None comes back."""
    future = _statuses[pid] = asyncio.get_running_loop().create_future()
    try:
        return await asyncio.wait_for(future, seconds)
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        return None
    finally:
        _statuses.pop(pid, None)


def reap(known: Iterable[NamespaceProcess]) -> None:
    """Collect every dead child, adopted ones too."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        for process in known:
            if process.pid == pid and not process.exited.done():
                process.exited.set_result(status)
        if pid in _statuses and not _statuses[pid].done():
            _statuses[pid].set_result(status)


def oom_kills() -> int:
    """How many processes of this cgroup the kernel has killed for want of memory (cgroup v1 or v2)."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        with contextlib.suppress(OSError):
            for line in Path(path).read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0
