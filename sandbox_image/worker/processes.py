"""Process handling of the supervisor: namespace processes, running processes, kills and exit statuses."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from .protocol import HEADER, NO_TOKEN, PACKET_BYTES, TOOL_CALL

_CREDENTIALS = struct.Struct("3i")
_DESCRIPTOR = struct.Struct("i")
_SHORT_WAITS = 10

kept_pids: set[int] = set()
"""Pids that ``living`` ignores: the initial process of a reusable sandbox."""


class WorkerError(Exception):
    """The supervisor can no longer guarantee the state of the container. It exits on this error."""


class NamespaceProcess:
    """Handle of one namespace process: its pid, control socket and exit status."""

    def __init__(self, control: socket.socket, pid: int = 0) -> None:
        self.pid = pid
        """0 until the first reply of the process; then the sender's pid as reported by the kernel."""
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """The wait status, once the process has ended."""
        self._control = control
        self.token = NO_TOKEN
        """Token of the last command, with which its reply begins. Other messages are ignored."""
        self._reply = b""
        self.shares_state = False
        """It holds pipes, sockets or shared memory, which a checkpoint can't restore."""
        self.on_call: Callable[[int], None] | None = None
        """Takes the sockets on which code calls tools, while a script with tools runs."""
        self._changed = asyncio.Event()
        self._ended = False
        control.setblocking(False)
        control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        asyncio.get_running_loop().add_reader(control, self._read)

    def _read(self) -> None:
        try:
            room = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(_DESCRIPTOR.size)
            data, ancillary, *_ = self._control.recvmsg(64, room, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        self._take_calls(data, ancillary)
        if not data:
            self._ended = True
            asyncio.get_running_loop().remove_reader(self._control)
        elif len(data) != len(self.token) + 1 or not data.startswith(self.token):
            return  # code has found the socket
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and not self.pid:
                self.pid = _CREDENTIALS.unpack(payload[: _CREDENTIALS.size])[0]
        self._reply = data[-1:]
        self._changed.set()

    def _take_calls(self, data: bytes, ancillary: list[tuple[int, int, bytes]]) -> None:
        """Pass on the socket of a call of a tool, and close all other descriptors that code sends."""
        for level, kind, payload in ancillary:
            if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                continue
            fds = [fd for (fd,) in _DESCRIPTOR.iter_unpack(payload[: len(payload) // 4 * 4])]
            if data == TOOL_CALL and len(fds) == 1 and self.on_call is not None:
                self.on_call(fds[0])
            else:
                for fd in fds:
                    os.close(fd)

    async def command(self, name: bytes, payload: bytes = b"", fds: Iterable[int] = ()) -> bytes:
        """Resume the process, send a command and return its token.

        A process that has ended is noticed by its exit, not here.
        """
        self.token, self._reply = os.urandom(8), b""
        self._signal(signal.SIGCONT)
        with contextlib.suppress(OSError):
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            self._control.sendmsg(
                [HEADER.pack(name, self.token, len(payload))], rights if rights[0][2] else []
            )
            for start in range(0, len(payload), PACKET_BYTES):
                packet = payload[start : start + PACKET_BYTES]
                await asyncio.get_running_loop().sock_sendall(self._control, packet)
        return self.token

    async def reply(self) -> bytes:
        """Return the one-byte reply to the last command; nothing if the process closed its socket or died."""
        while not self._reply and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        return self._reply

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def stop(self) -> bool:
        """Stop all threads of the process. Return whether the kernel reports it as stopped or ended.

        Only ``command`` and ``resume`` resume it. Code can't arrange for a SIGCONT: the system-call filter
        denies every way to have the kernel send a signal of choice, and no other process of its uid is left.
        """
        state = process_state(self.pid)
        if state in ("T", "Z", "X", "") or self.exited.done():
            # A process whose first thread has exited is reported as a zombie although others run.
            return state != "Z" or threads(self.pid) <= 1
        self._signal(signal.SIGSTOP)
        return process_state(self.pid) == "T"

    def resume(self) -> None:
        """Undo ``stop``."""
        self._signal(signal.SIGCONT)

    def scheduling(self) -> tuple[int, set[int]]:
        """Return the nice value, and the processors on which the process may run. Code can change both."""
        return os.getpriority(os.PRIO_PROCESS, self.pid), os.sched_getaffinity(self.pid)

    def _signal(self, number: int) -> None:
        if self.pid > 1 and not self.exited.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()


def process_state(pid: int) -> str:
    """Return the state letter of a process; an empty string if it does not exist."""
    with contextlib.suppress(OSError):
        stat = Path("/proc", str(pid), "stat").read_bytes()
        return chr(stat[stat.rindex(b")") + 2])
    return ""


def living(keep: Iterable[int]) -> list[int]:
    """Return the pids of all processes except the supervisor, ``kept_pids``, ``keep`` and zombies."""
    excluded = {os.getpid(), *kept_pids, *keep}
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    # The first thread of a process may have exited while others run.
    return [
        pid
        for pid in pids
        if pid not in excluded
        and ((state := process_state(pid)) not in ("Z", "X", "") or (state == "Z" and threads(pid) > 1))
    ]


def cpu_seconds() -> float:
    """Return the CPU time of all processes of the sandbox so far; 0 if there is no cgroup to ask."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/sys/fs/cgroup/cpu.stat").read_text().split("usage_usec ", 1)[1].split()[0]) / 1e6
    for folder in ("cpuacct", "cpu,cpuacct"):
        with contextlib.suppress(OSError, ValueError):
            return int(Path("/sys/fs/cgroup", folder, "cpuacct.usage").read_text()) / 1e9
    return 0.0


def threads(pid: int) -> int:
    """Return the number of threads of a process; 0 if it has ended."""
    with contextlib.suppress(OSError, IndexError):
        status = Path("/proc", str(pid), "status").read_bytes()
        return int(status.split(b"\nThreads:", 1)[1].split(b"\n", 1)[0])
    return 0


async def wait_for_processes(attempt: int) -> None:
    """Wait before the next look at processes that are about to stop or to end.

    Most take less than a tenth of a millisecond, but the event loop's timers take at least one, so the first
    waits block.
    """
    if attempt < _SHORT_WAITS:
        time.sleep(0.0001)  # noqa: ASYNC251
        await asyncio.sleep(0)
    else:
        await asyncio.sleep(0.0005 * min(attempt - _SHORT_WAITS + 1, 20))


async def settle(keep: Iterable[NamespaceProcess], uid: int, *, stop: bool = True) -> None:
    """Kill all processes except the supervisor, ``kept_pids`` and ``keep``. With ``stop``, stop the latter.

    Raises:
        WorkerError: a process could not be killed or stopped.
    """
    processes = list(keep)
    pids = [process.pid for process in processes]
    settled = not stop
    for attempt in range(400):
        stopped = not stop or [process.stop() for process in processes].count(False) == 0
        strays = living(pids)
        was_settled, settled = settled, stopped and not strays
        if settled and was_settled:
            return
        if settled:
            continue  # Look again: the process that was stopped last may have resumed another one before.
        if uid and strays:
            # One system call kills all of them, so forks can't outrun it. After a fork bomb there may be no
            # process left to run it in; then the kills below make room for the next attempt.
            await as_user(uid, lambda: os.kill(-1, signal.SIGKILL), seconds=2)
        for pid in living(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await wait_for_processes(attempt)
    raise WorkerError("some processes could not be killed or stopped")


async def as_user(uid: int, action: Callable[[], object], *, seconds: float) -> bool:
    """Run ``action`` in a fork with the uid of the code. Return whether it succeeded within ``seconds``."""
    try:
        pid = os.fork()
    except OSError:
        return False  # code has used up all processes
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
        kept_pids.discard(pid)  # another process may get the number
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
