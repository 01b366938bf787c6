"""Isolation checks: code that tries to break each limit, run inside a real sandbox before it is used.

Covered: user id and capabilities, system call filter, masked files, read-only root, disk size, sockets and
network, terminals, number of processes, code between two runs, memory, and use of the sandbox after the
memory limit. A sandbox that fails a check is never used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.sandbox.base import ExecutionResult, SandboxError, Session, SessionLimits
from service.sandbox.settings import PoolSettings

_LIMITS = SessionLimits(run_limit_s=60.0, eager=False)


@dataclass(frozen=True, slots=True)
class IsolationCheck:
    """Code that tries to break one limit, and the condition on its result."""

    name: str
    code: str
    passes: Callable[[ExecutionResult], bool]


def _prints(text: str) -> Callable[[ExecutionResult], bool]:
    return lambda result: result.status == "ok" and result.stdout.strip() == text


_STATUS = "fields = dict(line.split(':\\t', 1) for line in open('/proc/self/status') if ':\\t' in line)\n"


def isolation_checks(settings: PoolSettings) -> list[IsolationCheck]:
    """Return all checks in order. The last one runs in the session that has just met the memory limit."""
    return [
        IsolationCheck(
            "uid",
            _STATUS + "print(0 not in map(int, fields['Uid'].split() + fields['Gid'].split()),"
            " fields['CapEff'].strip(), fields['CapPrm'].strip(),"
            " __import__('ctypes').CDLL(None).prctl(39, 0, 0, 0, 0))",  # PR_GET_NO_NEW_PRIVS
            _prints("True 0000000000000000 0000000000000000 1"),
        ),
        IsolationCheck(
            "seccomp",
            "import ctypes\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            "denied = libc.unshare(0x10000000) == -1 and ctypes.get_errno() == 1\n"  # CLONE_NEWUSER
            "flags = (ctypes.c_uint64 * 8)(0x10000000)\n"
            "print(denied, libc.syscall(435, flags, 64), libc.ptrace(0, 0, 0, 0))",  # clone3, PTRACE_TRACEME
            _prints("True -1 -1"),
        ),
        IsolationCheck(
            "signals from the kernel",
            "import ctypes, os\n"
            "libc, timer = ctypes.CDLL(None), ctypes.c_void_p()\n"
            "read, write = os.pipe()\n"
            "print(libc.timer_create(0, None, ctypes.byref(timer)), libc.fcntl(read, 10, 18),"  # F_SETSIG
            " libc.fcntl(read, 8, os.getpid()), libc.prctl(1, 18),"  # F_SETOWN, PR_SET_PDEATHSIG
            " libc.ioctl(read, 0x5452, ctypes.byref(ctypes.c_int(1))))",  # FIOASYNC
            _prints("-1 -1 -1 -1 -1"),
        ),
        IsolationCheck(
            "masked files",
            "import os\n"
            "for name in ('locks', 'sys/fs/file-nr', 'keys', 'kallsyms', 'loadavg'):\n"
            "    try:\n"
            "        if open('/proc/' + name).read(): print('read', name)\n"
            "    except OSError: pass\n"
            "for path in ('/dev/pts', '/proc/sys/fs', '/sys/firmware'):\n"
            "    if os.path.isdir(path) and os.listdir(path): print('listed', path)\n"
            "try: os.openpty()\n"
            "except OSError: print('checked')",
            _prints("checked"),
        ),
        IsolationCheck(
            "read-only root",
            "import errno\n"
            "for path in ('/', '/usr', '/etc', '/opt/sandbox', '/var/tmp', '/root', '/inputs'):\n"
            "    try:\n"
            "        open(path + '/probe', 'w')\n"
            "        print('wrote', path)\n"
            "    except OSError as error:\n"
            "        if error.errno not in (errno.EROFS, errno.EACCES, errno.ENOENT): print(path, error)\n"
            "print('checked')",
            _prints("checked"),
        ),
        IsolationCheck(
            "disk",
            "import errno\n"
            "try:\n"
            "    for number in range(4):\n"
            "        with open(f'fill{number}', 'wb') as file:\n"
            f"            file.write(bytes({settings.disk_mb} << 20))\n"
            "except OSError as error:\n"
            "    print(error.errno in (errno.ENOSPC, errno.EFBIG))\n"
            "import os\n"
            "for name in os.listdir('.'): os.unlink(name)",
            _prints("True"),
        ),
        IsolationCheck(
            "network",
            "import socket\n"
            "for family in range(64):\n"
            "    for kind in range(1, 7):\n"
            "        try: socket.socket(family, kind).close()\n"
            "        except OSError: continue\n"
            "        print('created', family, kind)\n"
            "print([line.split(':')[0].strip() for line in open('/proc/net/dev') if ':' in line])",
            _has_no_network,
        ),
        IsolationCheck(
            "pids",
            "import threading\n"
            "go, started = threading.Event(), 0\n"
            "try:\n"
            f"    while started < {settings.pids} + 16:\n"
            "        threading.Thread(target=go.wait).start()\n"
            "        started += 1\n"
            "    print('no limit')\n"
            "except RuntimeError:\n"
            "    print('limited')\n"
            "finally:\n"
            "    go.set()",
            _prints("limited"),
        ),
        IsolationCheck(
            "memory",
            f"hoard = []\nwhile len(hoard) < {4 * settings.memory_mb}:\n"
            "    hoard.append(bytearray(b'x') * (1 << 20))\n",
            lambda result: (
                result.status == "oom" or (result.status == "error" and "MemoryError" in result.stderr)
            ),
        ),
        IsolationCheck("life after the memory limit", "print(6 * 7)", _prints("42")),
    ]


def _has_no_network(result: ExecutionResult) -> bool:
    """Return whether no socket was created and no network interface exists.

    Tunnel interfaces, which the kernel creates in every network namespace, are down and therefore accepted.
    """
    hardware = ("eth", "ens", "enp", "wlan", "veth")
    return (
        result.status == "ok"
        and "created" not in result.stdout
        and not any(name in result.stdout for name in hardware)
    )


async def check_isolation(
    open_session: Callable[[SessionLimits], Session], checks: Sequence[IsolationCheck]
) -> None:
    """Run the checks in one session.

    Raises:
        SandboxError: a check failed; with its name and result.
    """
    session = open_session(_LIMITS)
    try:
        for check in checks:
            await session.invoke(check.code)
            result = await session.flush()
            if not check.passes(result):
                raise SandboxError(
                    f"the sandbox failed an isolation check and is not used: {check.name} "
                    f"(status {result.status}, stdout {result.stdout[-300:]!r}, "
                    f"stderr {result.stderr[-300:]!r})"
                )
    finally:
        await session.close()
