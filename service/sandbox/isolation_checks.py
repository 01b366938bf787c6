"""Proofs, taken from inside a real sandbox, that its walls stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.sandbox.base import ExecutionResult, SandboxError, Session, SessionLimits
from service.sandbox.settings import PoolSettings

_LIMITS = SessionLimits(run_limit_s=60.0, eager=False)


@dataclass(frozen=True, slots=True)
class Probe:
    """Code that tries to get past one wall, and what must come of it."""

    wall: str
    code: str
    holds: Callable[[ExecutionResult], bool]


def _says(text: str) -> Callable[[ExecutionResult], bool]:
    return lambda result: result.status == "ok" and result.stdout.strip() == text


_STATUS = "fields = dict(line.split(':\\t', 1) for line in open('/proc/self/status') if ':\\t' in line)\n"


def probes(settings: PoolSettings) -> list[Probe]:
    """Every proof; the memory bomb comes last, and its session goes on afterwards."""
    return [
        Probe(
            "uid",
            _STATUS + "print(0 not in map(int, fields['Uid'].split() + fields['Gid'].split()),"
            " fields['CapEff'].strip(), fields['CapPrm'].strip(),"
            " __import__('ctypes').CDLL(None).prctl(39, 0, 0, 0, 0))",  # PR_GET_NO_NEW_PRIVS
            _says("True 0000000000000000 0000000000000000 1"),
        ),
        Probe(
            "seccomp",
            "import ctypes\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            "refused = libc.unshare(0x10000000) == -1 and ctypes.get_errno() == 1\n"  # CLONE_NEWUSER
            "flags = (ctypes.c_uint64 * 8)(0x10000000)\n"
            "print(refused, libc.syscall(435, flags, 64), libc.ptrace(0, 0, 0, 0))",  # clone3, PTRACE_TRACEME
            _says("True -1 -1"),
        ),
        Probe(
            "read-only root",
            "import errno\n"
            "for path in ('/', '/usr', '/etc', '/opt/sandbox', '/var/tmp', '/root'):\n"
            "    try:\n"
            "        open(path + '/probe', 'w')\n"
            "        print('wrote', path)\n"
            "    except OSError as error:\n"
            "        if error.errno not in (errno.EROFS, errno.EACCES, errno.ENOENT): print(path, error)\n"
            "print('checked')",
            _says("checked"),
        ),
        Probe(
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
            _says("True"),
        ),
        Probe(
            "network",
            "import socket\n"
            "targets = (socket.AF_INET, '192.0.2.1'), (socket.AF_INET6, '2001:db8::1')\n"
            "for family, address in targets:\n"
            "    with socket.socket(family) as s:\n"
            "        s.settimeout(2)\n"
            "        try:\n"
            "            s.connect((address, 80))\n"
            "            print('connected')\n"
            "        except OSError: pass\n"
            "print([line.split(':')[0].strip() for line in open('/proc/net/dev') if ':' in line])",
            _unconnected,
        ),
        Probe(
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
            _says("limited"),
        ),
        Probe(
            "memory",
            f"hoard = []\nwhile len(hoard) < {4 * settings.memory_mb}:\n"
            "    hoard.append(bytearray(b'x') * (1 << 20))\n",
            lambda result: (
                result.status == "oom" or (result.status == "error" and "MemoryError" in result.stderr)
            ),
        ),
        Probe("life after the memory limit", "print(6 * 7)", _says("42")),
    ]


def _unconnected(result: ExecutionResult) -> bool:
    """No connection, and no interface to make one with: tunnels that the kernel puts everywhere are down."""
    hardware = ("eth", "ens", "enp", "wlan", "veth")
    return (
        result.status == "ok"
        and "connected" not in result.stdout
        and not any(name in result.stdout for name in hardware)
    )


async def prove_isolation(open_session: Callable[[SessionLimits], Session], walls: Sequence[Probe]) -> None:
    """Run every probe.

    Raises:
        SandboxError: a wall does not stand; names it, and what the probe saw.
    """
    session = open_session(_LIMITS)
    try:
        for probe in walls:
            await session.invoke(probe.code)
            result = await session.flush()
            if not probe.holds(result):
                raise SandboxError(
                    f"the sandbox does not hold: {probe.wall} (status {result.status}, "
                    f"stdout {result.stdout[-300:]!r}, stderr {result.stderr[-300:]!r}). It is not used."
                )
    finally:
        await session.close()
