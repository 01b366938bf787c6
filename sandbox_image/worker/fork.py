"""A fork that becomes the parent's sibling: a child of the supervisor, which alone waits for it.

The usual way is to fork twice and let the middle process exit. That copies the page tables of a large process
twice and tears them down once more, which costs more than all the rest of a call.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

_CLONE_PARENT = 0x00008000
_CLONE_CHILD_CLEARTID = 0x00200000
_CLONE_CHILD_SETTID = 0x01000000
_PR_GET_TID_ADDRESS = 40
_SYS_CLONE = {"x86_64": 56, "aarch64": 220}.get(os.uname().machine)

_fork, _exit, _waitpid, _listdir = os.fork, os._exit, os.waitpid, os.listdir
_libc = ctypes.PyDLL(
    None, use_errno=True
)  # keeps the interpreter's lock: nothing runs between the two halves
_before, _after_child, _after_parent = (
    ctypes.pythonapi.PyOS_BeforeFork,
    ctypes.pythonapi.PyOS_AfterFork_Child,
    ctypes.pythonapi.PyOS_AfterFork_Parent,
)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long, ctypes.c_ulong, *([ctypes.c_void_p] * 4)]


def _thread_id_address() -> int | None:
    """Where the C library keeps the id of the main thread, which a fork must set anew."""
    address = ctypes.c_void_p()
    if _libc.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(address)):
        return None
    return address.value


_tid_address = _thread_id_address()


def fork_sibling() -> bool:
    """Fork; true in the new process.

    Raises:
        OSError: there is no room for another process.
    """
    if _SYS_CLONE is None or _tid_address is None or len(_listdir("/proc/self/task")) > 1:
        return _fork_twice()  # with threads the C library's own fork is needed: it takes all its locks first
    flags = _CLONE_PARENT | _CLONE_CHILD_CLEARTID | _CLONE_CHILD_SETTID | signal.SIGCHLD
    _before()
    pid = _syscall(_SYS_CLONE, flags, None, None, _tid_address, _tid_address)
    if pid == 0:
        _after_child()
        return True
    _after_parent()
    if pid < 0:
        return _fork_twice()
    return False


def _fork_twice() -> bool:
    middle = _fork()
    if middle == 0:
        if _fork():
            _exit(0)
        return True
    with contextlib.suppress(ChildProcessError):
        _waitpid(middle, 0)
    return False
