"""The seccomp profile on both processors: every call that arm64 lacks has its replacement in the profile."""

from __future__ import annotations

import ctypes
import json

import pytest

from service.sandbox.base import SandboxError
from service.sandbox.worker_program import image_folder, load_libseccomp

AARCH64 = 0xC00000B7
X86_64 = 0xC000003E
PROFILE = json.loads((image_folder() / "seccomp.json").read_text())
NAMES = {name for rule in PROFILE["syscalls"] for name in rule["names"]}
REPLACEMENTS = {
    "access": "faccessat",
    "alarm": "setitimer",
    "chmod": "fchmodat",
    "dup2": "dup3",
    "epoll_wait": "epoll_pwait",
    "fork": "clone",
    "getpgrp": "getpgid",
    "link": "linkat",
    "lstat": "newfstatat",
    "mkdir": "mkdirat",
    "mknod": "mknodat",
    "open": "openat",
    "pause": "ppoll",
    "pipe": "pipe2",
    "poll": "ppoll",
    "readlink": "readlinkat",
    "rename": "renameat",
    "rmdir": "unlinkat",
    "select": "pselect6",
    "stat": "newfstatat",
    "symlink": "symlinkat",
    "time": "gettimeofday",
    "unlink": "unlinkat",
    "vfork": "clone",
}
"""Calls of x86-64 only, and the calls that the C library makes on arm64 instead."""
NOT_NEEDED = {"arch_prctl"}  # the thread pointer of arm64 is a register


@pytest.fixture(scope="module")
def libseccomp() -> ctypes.CDLL:
    try:
        return load_libseccomp()
    except SandboxError as error:
        pytest.skip(str(error))


def numbers(library: ctypes.CDLL, architecture: int) -> dict[str, int]:
    """Numbers of the calls of the profile; negative for those that the processor does not have."""
    library.seccomp_syscall_resolve_name_arch.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    return {
        name: library.seccomp_syscall_resolve_name_arch(architecture, name.encode()) for name in sorted(NAMES)
    }


def test_profile_names_both_processors() -> None:
    assert [entry["architecture"] for entry in PROFILE["archMap"]] == [
        "SCMP_ARCH_X86_64",
        "SCMP_ARCH_AARCH64",
    ]


def test_calls_that_arm64_lacks_are_replaced(libseccomp: ctypes.CDLL) -> None:
    newest = {"fchmodat2"}  # unknown to older versions of libseccomp, on every processor
    here = numbers(libseccomp, AARCH64)
    lacking = {name for name, number in here.items() if number < 0} - newest
    assert lacking == set(REPLACEMENTS) | NOT_NEEDED
    assert [name for name in REPLACEMENTS.values() if here.get(name, -1) < 0] == []
    assert {name for name, number in numbers(libseccomp, X86_64).items() if number < 0} <= newest


@pytest.mark.parametrize("architecture", [X86_64, AARCH64])
def test_calls_with_conditions_exist_on_both_processors(libseccomp: ctypes.CDLL, architecture: int) -> None:
    here = numbers(libseccomp, architecture)
    conditional = {name for rule in PROFILE["syscalls"] if "args" in rule for name in rule["names"]}
    assert [name for name in conditional if here[name] < 0] == []
