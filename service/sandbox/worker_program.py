"""The worker program, which all kinds of sandbox run: its files, its argument and its seccomp filter.

Docker compiles the seccomp profile itself; ``compile_profile`` compiles it for bubblewrap.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import secrets
from pathlib import Path
from typing import Any

from service.sandbox.base import SandboxError
from service.sandbox.settings import PoolSettings

INPUTS = "/inputs"
"""Directory of the inputs inside a sandbox."""
WORK = "/sandbox"
"""Work directory inside a sandbox."""
_IMPORTS_MB = 384
"""Address space that Python, numpy and sympy use before any code runs, in megabytes."""
MASKED_PATHS = (
    *("/proc/acpi", "/proc/asound", "/proc/bus", "/proc/driver", "/proc/fs", "/proc/irq", "/proc/scsi"),
    *("/proc/sysvipc", "/proc/tty", "/proc/pressure", "/proc/sys/fs", "/proc/sys/kernel/pty"),
    *("/proc/buddyinfo", "/proc/cgroups", "/proc/cmdline", "/proc/config.gz", "/proc/consoles"),
    *("/proc/diskstats", "/proc/interrupts", "/proc/iomem", "/proc/ioports", "/proc/kallsyms", "/proc/kcore"),
    *("/proc/key-users", "/proc/keys", "/proc/kmsg", "/proc/kpagecgroup", "/proc/kpagecount"),
    *("/proc/kpageflags", "/proc/latency_stats", "/proc/loadavg", "/proc/locks", "/proc/mdstat"),
    *("/proc/modules", "/proc/mtrr", "/proc/pagetypeinfo", "/proc/partitions", "/proc/sched_debug"),
    *("/proc/schedstat", "/proc/slabinfo", "/proc/softirqs", "/proc/swaps", "/proc/sysrq-trigger"),
    *("/proc/timer_list", "/proc/timer_stats", "/proc/vmallocinfo", "/proc/vmstat", "/proc/zoneinfo"),
    *("/sys/firmware", "/sys/devices/virtual/powercap", "/dev/pts", "/dev/mqueue"),
)
"""Paths that code sees as empty: they describe the whole machine, or are a channel between sandboxes
(``/proc/locks``, ``/proc/sys/fs/file-nr``), or take from what all sandboxes share (``/dev/pts``)."""
_FIRST_UID, _LAST_UID = 200_000, 2_000_000_000
_FIRST_MAPPED_UID, _MAPPED_UIDS = 1_000, 32_000
_mapped_uids = itertools.count(secrets.randbelow(_MAPPED_UIDS))


def image_folder() -> Path:
    """Return the folder of the sandbox image: inside ``service`` if installed, beside it in a checkout."""
    installed = Path(__file__).parent / "image"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "sandbox_image"


def worker_config(settings: PoolSettings, uid: int) -> dict[str, Any]:
    """Return the argument of the worker program: the fields of its ``Config``."""
    return {
        "uid": uid,
        "home": WORK,
        "inputs": INPUTS,
        "writable": ["/tmp", WORK, "/dev/shm"],  # noqa: S108  inside the container
        "output_bytes": settings.output_bytes,
        "output_limit_bytes": settings.output_limit_mb << 20,
        "file_bytes": settings.disk_mb << 20,
        "open_files": settings.open_files,
        "max_lifetime_s": settings.max_lifetime_s,
        # Images of older versions do not have this field.
        **({"reusable": True} if settings.reuse else {}),
    }


def address_space_bytes(settings: PoolSettings) -> int:
    """Return RLIMIT_AS for code if no cgroup limits its memory: ``memory_mb`` plus that of the imports."""
    return (settings.memory_mb + _IMPORTS_MB) << 20


def fresh_uid(*, in_user_namespace: bool = False) -> int:
    """Return an even uid. Each sandbox needs its own, since the kernel counts some limits by uid.

    It is random, or the next one of the few in a user namespace.
    """
    if in_user_namespace:
        return _FIRST_MAPPED_UID + 2 * (next(_mapped_uids) % _MAPPED_UIDS)
    return _FIRST_UID + 2 * secrets.randbelow((_LAST_UID - _FIRST_UID) // 2)


_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_OPERATORS = {"SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}
_UNKNOWN_SYSCALL = -1


class _SeccompComparison(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def compile_profile(profile: Path) -> int:
    """Compile a seccomp profile to a BPF program.

    Returns:
        Descriptor of an unnamed file that holds the program. The caller closes it.

    Raises:
        SandboxError: libseccomp is not installed or rejects the profile.
    """
    library = load_libseccomp()
    rules: dict[str, Any] = json.loads(profile.read_text())
    context = library.seccomp_init(_ERRNO | rules["defaultErrnoRet"])
    program = os.memfd_create("seccomp")
    try:
        for rule in rules["syscalls"]:
            _add_rule(library, context, rule)
        if library.seccomp_export_bpf(context, program):
            raise SandboxError("libseccomp could not compile the sandbox's seccomp profile")
    except BaseException:
        os.close(program)
        raise
    finally:
        library.seccomp_release(context)
    os.lseek(program, 0, os.SEEK_SET)
    return program


def _add_rule(library: ctypes.CDLL, context: int, rule: dict[str, Any]) -> None:
    action = _ALLOW if rule["action"] == "SCMP_ACT_ALLOW" else _ERRNO | rule["errnoRet"]
    arguments = rule.get("args", [])
    comparisons = (_SeccompComparison * len(arguments))(
        *(
            _SeccompComparison(a["index"], _OPERATORS[a["op"]], a["value"], a.get("valueTwo", 0))
            for a in arguments
        )
    )
    for name in rule["names"]:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == _UNKNOWN_SYSCALL:
            continue  # newer than this libseccomp, or of another architecture: denied
        if library.seccomp_rule_add_array(context, action, number, len(arguments), comparisons):
            raise SandboxError(f"libseccomp rejects the rule for {name}")


def load_libseccomp() -> ctypes.CDLL:
    """Load libseccomp.

    Raises:
        SandboxError: it is not installed.
    """
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise SandboxError(
            "libseccomp is missing; install it (Debian: libseccomp2). Without a system call filter the "
            "process sandbox is not used."
        ) from error
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_release.restype = None
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_void_p,
    ]
    return library
