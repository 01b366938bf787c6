"""The namespace process, which holds an episode's namespace and runs its blocks.

Two such processes exist at any time: the *base*, which runs code, and its *checkpoint*, a fork taken before
the code ran. If a flush succeeds, the checkpoint is dropped. If it fails, the base is killed and the
checkpoint takes its place. A failure therefore leaves no trace in memory, and no object is ever serialized.
A sandbox that is reused has a third one, the *initial* process, in which no code ever ran.

The supervisor trusts nothing here, because code that has run can have changed any of it. It learns from the
kernel how a process ended.
"""

from __future__ import annotations

import builtins
import concurrent.futures.thread  # noqa: F401  before ``register_at_fork`` is replaced: see there
import contextlib
import ctypes
import fcntl
import gc
import importlib
import io
import json
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn, TextIO

from .displays import figures, is_table, write_displays
from .open_files import OpenFiles
from .protocol import (
    CHANNEL_LOST_SIGNAL,
    EXITED,
    FINISH,
    FINISHED,
    FINISHED_WITH_DISPLAYS,
    FINISHED_WITH_TIMERS,
    HEADER,
    NO_TOKEN,
    NOT_SEPARABLE,
    PACKET_BYTES,
    RAN,
    RENDER,
    RENDERING,
    RUN,
    SEED,
    STARTED,
    STARTED_SHARING,
    Config,
)
from .script import NotSeparableError, Script
from .tools import ToolsModule

PREIMPORT = ("numpy", "sympy", "mpmath", "scipy.optimize")
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "JOBLIB_MULTIPROCESSING": "0",  # a container has one core, and each process imports everything again
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "1",  # the default is one per core of the machine, above the limit of processes
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONWARNINGS": "ignore",
}
_RESERVED_PROCESSES = 6  # threads that code can't start, so that a checkpoint can always be forked
_RESERVED_FILES = 16  # descriptors that code can't use, so that the next command can always be received
_OOM_SCORE = 500  # if memory runs out, the kernel kills code before the supervisor

_CLONE_PARENT = 0x00008000
_CLONE_CHILD_CLEARTID = 0x00200000
_CLONE_CHILD_SETTID = 0x01000000
_PR_GET_TID_ADDRESS = 40
_MADV_COLLAPSE = 25
_M_ARENA_MAX = -8
_SYS_CLONE = {"x86_64": 56, "aarch64": 220}.get(os.uname().machine)
_VERSION_OFFSET = 24
"""Offset of ``ma_version_tag`` (PEP 509) in a dict of CPython 3.11 and 3.12."""

# Code may replace these functions in their modules. What runs between its blocks must not depend on them.
_loads, _recv_fds = json.loads, socket.recv_fds
_open, _close, _dup2, _write, _listdir = os.open, os.close, os.dup2, os.write, os.listdir
_fork, _waitpid, _kill = os.fork, os.waitpid, os.kill
_register_at_fork = os.register_at_fork
_getpid, _setresuid, _setsid, _exit = os.getpid, os.setresuid, os.setsid, os._exit
_libc = ctypes.PyDLL(None, use_errno=True)  # keeps the GIL
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long, ctypes.c_ulong, *([ctypes.c_void_p] * 4)]
_from_address = ctypes.c_uint64.from_address


class Namespace:
    """Serves the supervisor's commands: run a block, finish the script, fork a checkpoint."""

    def __init__(self, control: socket.socket, config: Config) -> None:
        self.config = config
        self.control = self.keep_away(control)
        self.open_files: OpenFiles | None = None
        """Offsets of the open files, if this is a checkpoint that has not taken over yet."""
        self.token = NO_TOKEN
        # Code gets a copy of the builtins module, so that its replacements do not affect this code.
        self.builtins = ModuleType("builtins")
        self.builtins.__dict__.update(builtins.__dict__)
        sys.modules["builtins"] = self.builtins
        self.main = ModuleType("__main__")
        self.main.__dict__["__builtins__"] = self.builtins
        self.script = Script("", self.main.__dict__)
        self.stderr: TextIO = sys.stderr
        self.table: object = None
        """The last value of the script if it is a table to render."""
        self.tools = ToolsModule(lambda: self.control)
        self.forked = False
        """Code has forked a process that continues the script, like this one."""
        _register_at_fork(after_in_parent=self.note_fork)
        sys.modules["__main__"] = self.main
        self.snapshots = DictSnapshot(self.builtins.__dict__), DictSnapshot(sys.modules)

    def serve(self) -> NoReturn:
        while True:
            header, fds, *_ = _recv_fds(self.control, HEADER.size, 2)
            if not header:
                _exit(0)
            command, self.token, size = HEADER.unpack(header)
            payload = b""
            while len(payload) < size:
                payload += self.control.recv(PACKET_BYTES)
            if self.open_files is not None:
                self.open_files.restore()
                self.open_files = None
                reset_executors()
            if command == RUN:
                self.run(_loads(payload), fds)
            elif command == FINISH:
                self.finish(displays=bool(payload))
            elif command == RENDER:
                self.render(fds[0], svg=payload == b"svg")
            elif command == SEED:
                seed_generators()
                self.become_idle()  # shares no open file with the process from which it was forked
                self.reply(STARTED)
            else:
                self.checkpoint(socket.socket(fileno=fds[0]))

    def run(self, request: dict[str, Any], fds: list[int]) -> None:
        """Run one block. The first block of a script comes with the pipes for its output."""
        if fds:
            self.prepare(fds)
            self.table = None
            self.tools.install(request["tools"])
            self.script = Script(request["name"], self.main.__dict__)
        pid = _getpid()
        self.forked = False
        reply = RAN[False, False]
        try:
            self.script.run(request["code"], alone=request["alone"])
        except NotSeparableError:
            self.reply(NOT_SEPARABLE)
            return
        except SystemExit as leaving:
            self.script.value = None
            code = leaving.code
            if code is not None and not isinstance(code, int):
                self.stderr.write(f"{code}\n")
                code = 1
            if code and code & 0xFF:
                self.exit_process(code & 0xFF)
            reply = EXITED
        except BaseException as error:
            self.exit_with(error)
        if _getpid() != pid:
            self.exit_process(0)  # a fork made by the code has reached the end of the script
        self.flush_streams()
        if reply != EXITED:
            reply = RAN[self.forked, has_timers()]
        if not self.reply(reply):
            # Code has closed the socket. The next request cannot be received.
            if request["alone"]:
                _kill(_getpid(), CHANNEL_LOST_SIGNAL)
            if reply != EXITED:
                self.finish(displays=False)
            _exit(0)

    def note_fork(self) -> None:
        self.forked = True

    def finish(self, *, displays: bool) -> None:
        """Print the last value, wait for the script's threads as Python does at exit, and become idle."""
        self.table = None
        try:
            if displays and is_table(self.script.value):
                self.table = self.script.value
            self.script.show()
            join_threads()
        except BaseException as error:
            self.exit_with(error)
        self.flush_streams()
        reply = FINISHED_WITH_TIMERS if has_timers() else FINISHED
        if displays and reply == FINISHED and (self.table is not None or figures()):
            reply = FINISHED_WITH_DISPLAYS
        self.become_idle()
        if not self.reply(reply):
            _exit(0)  # the script has succeeded, but the state can't be kept

    def render(self, fd: int, *, svg: bool) -> None:
        """Render the displays in a fork, with the uid of code, which ends afterwards."""
        reap_children()
        table, self.table = self.table, None
        if not fork_sibling():
            _close(fd)
            self.reply(RENDERING)
            return
        try:
            self.control.close()
            if self.config.uid:
                _setresuid(self.config.uid, self.config.uid, self.config.uid)
            write_displays(fd, table, svg=svg)
        finally:
            _exit(0)

    def prepare(self, pipes: list[int]) -> None:
        """Set up streams, builtins, modules, limits and the uid for a script."""
        for target, fd in enumerate(pipes, start=1):
            _dup2(fd, target)
            _close(fd)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = text_stream(1)
        sys.stderr = self.stderr = text_stream(2)
        for snapshot in self.snapshots:
            snapshot.restore()
        set_limit(resource.RLIMIT_NOFILE, self.config.open_files - _RESERVED_FILES, self.config.open_files)
        if self.config.processes:
            set_limit(
                resource.RLIMIT_NPROC, self.config.processes - _RESERVED_PROCESSES, self.config.processes
            )
        if self.config.uid:
            _setresuid(self.config.uid, self.config.uid, self.config.uid + 1)

    def become_idle(self) -> None:
        """Give up the script's uid and streams."""
        if self.config.uid:
            _setresuid(self.config.uid + 1, self.config.uid, self.config.uid + 1)
        set_limit(resource.RLIMIT_NOFILE, self.config.open_files, self.config.open_files)
        if self.config.processes:
            set_limit(resource.RLIMIT_NPROC, self.config.processes, self.config.processes)
        null = _open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            _dup2(null, fd)
        if null > 2:
            _close(null)

    def checkpoint(self, control: socket.socket) -> None:
        """Fork a copy that answers on ``control``."""
        reap_children()
        if not fork_sibling():
            control.close()
            return
        self.control.close()
        self.control = self.keep_away(control)
        _setsid()
        self.open_files = OpenFiles(except_for=self.control.fileno())
        self.reply(STARTED_SHARING if self.open_files.shared else STARTED)

    def keep_away(self, control: socket.socket) -> socket.socket:
        """Move the socket to a high descriptor, so that code gets the numbers of a new process."""
        try:
            high = fcntl.fcntl(control, fcntl.F_DUPFD_CLOEXEC, self.config.open_files - _RESERVED_FILES // 2)
        except OSError:  # code has lowered the limit
            return control
        control.close()
        return socket.socket(fileno=high)

    def exit_with(self, error: BaseException) -> NoReturn:
        """Print the traceback of ``error`` and exit."""
        try:
            self.script.report(error, self.stderr)
        except BaseException:
            with contextlib.suppress(BaseException):
                _write(2, f"{type(error).__name__}\n".encode())
        self.exit_process(1)

    def exit_process(self, code: int) -> NoReturn:
        self.flush_streams()
        _exit(code)

    def flush_streams(self) -> None:
        for stream in (sys.stdout, sys.stderr, self.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()

    def reply(self, message: bytes) -> bool:
        """Answer the last command. Return whether the socket still exists."""
        try:
            self.control.sendall(self.token + message)
        except OSError:
            return False
        return True


def text_stream(fd: int) -> TextIO:
    """Return a stream on ``fd`` that encodes any text and writes it immediately, as with ``python -u``.

    Then the output of a child process comes in order, and a timeout loses nothing.
    """
    raw = open(fd, "wb", buffering=0, closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)  # type: ignore[type-var]


def set_limit(kind: int, soft: int, hard: int) -> None:
    """Set a limit of this process. Code may have lowered the hard limit, which can't be raised again."""
    highest = resource.getrlimit(kind)[1]
    hard = hard if highest == resource.RLIM_INFINITY else min(hard, highest)
    resource.setrlimit(kind, (min(soft, hard), hard))


def reap_children() -> None:
    """Collect the children that have ended. Each one counts as a process until then."""
    with contextlib.suppress(ChildProcessError):
        while _waitpid(-1, os.WNOHANG)[0]:
            pass


def has_timers() -> bool:
    """Return whether a timer is running that would send a signal while the process is idle."""
    kinds = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
    return any(signal.getitimer(kind)[0] for kind in kinds)


def join_threads() -> None:
    """Wait for all threads except daemons and the workers of executors, which stay idle."""
    executors = sys.modules.get("concurrent.futures.thread")
    workers = getattr(executors, "_threads_queues", {})
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread() and thread not in workers:
            thread.join()


def reset_executors() -> None:
    """Let the executors of code start new threads. Their idle ones do not exist in this fork."""
    executors = sys.modules.get("concurrent.futures.thread")
    workers = getattr(executors, "_threads_queues", {})
    for thread in list(workers):
        with contextlib.suppress(Exception):
            executor = thread._args[0]()
            executor._threads.discard(thread)
            executor._idle_semaphore = threading.Semaphore(0)
            del workers[thread]


def become_namespace(control: socket.socket, config: Config) -> NoReturn:
    """Turn this process, a fork of the supervisor, into the first namespace. Never returns."""
    os.setsid()
    os.nice(5)  # leaves CPU time to the supervisor when code uses all of it
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as adjust:
        adjust.write(str(_OOM_SCORE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (config.file_bytes, config.file_bytes))
    if config.uid:
        os.setgroups([])
        os.setresgid(config.uid, config.uid, config.uid)
        _setresuid(config.uid + 1, config.uid, config.uid + 1)
    os.chdir(config.home)
    os.environ.clear()
    os.environ.update(ENVIRONMENT, HOME=config.home)
    # Without the worker's own directory and the current one, an import finds installed packages only.
    sys.path[:] = [path for path in sys.path if path not in ("", os.path.dirname(os.path.dirname(__file__)))]
    sys.argv = [""]
    os.register_at_fork = sys.modules["posix"].register_at_fork = register_at_fork  # type: ignore[attr-defined]
    for name in PREIMPORT:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if config.address_space_bytes:
        _libc.mallopt(_M_ARENA_MAX, 1)  # an arena of each thread would take 64 MB of address space
        resource.setrlimit(resource.RLIMIT_AS, (config.address_space_bytes, config.address_space_bytes))
    gc.collect()
    gc.freeze()
    use_huge_pages()
    namespace = Namespace(control, config)
    namespace.become_idle()
    namespace.reply(STARTED)
    namespace.serve()


def seed_generators() -> None:
    """Seed the generators that were seeded at their import. No code may have run in this process."""
    importlib.import_module("random").seed()
    for name in ("numpy.random", "sympy.core.random"):
        if name in sys.modules:
            sys.modules[name].seed()


def use_huge_pages() -> None:
    """Collapse the memory of the imported packages into huge pages, where the kernel can (Linux 6.1).

    Each call forks the process, and the kernel copies and tears down entries of a page table for every page.
    """
    with contextlib.suppress(OSError, ValueError), open("/proc/self/maps") as maps:
        for line in maps:
            addresses, mode, _, _, inode, *_ = line.split()
            if mode.startswith("rw-p") and inode == "0":
                start, end = (int(address, 16) for address in addresses.split("-"))
                _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_COLLAPSE)


def fork_sibling() -> bool:
    """Fork a child of the parent process, the supervisor, which alone waits for it. Return True in the child.

    The usual way is to fork twice and let the middle process exit. That copies the page tables of a large
    process twice and tears them down once, which costs more than the rest of a call.

    Raises:
        OSError: no further process is possible.
    """
    if _SYS_CLONE is None or _tid_address is None or len(_listdir("/proc/self/task")) > 1:
        return (
            _fork_twice()
        )  # with threads, the C library's fork is required: it first takes all of its locks
    flags = _CLONE_PARENT | _CLONE_CHILD_CLEARTID | _CLONE_CHILD_SETTID | signal.SIGCHLD
    # Without the interpreter's hooks: a single thread has no locks to reset, and the hook of ``random`` would
    # seed it again.
    pid = _syscall(_SYS_CLONE, flags, None, None, _tid_address, _tid_address)
    if pid < 0:
        return _fork_twice()
    return pid == 0


_is_checkpoint_fork = False


def _fork_twice() -> bool:
    global _is_checkpoint_fork
    _is_checkpoint_fork = True
    try:
        middle = _fork()
        if middle == 0:
            if _fork():
                _exit(0)
            return True
    finally:
        _is_checkpoint_fork = False
    with contextlib.suppress(ChildProcessError):
        _waitpid(middle, 0)
    return False


def register_at_fork(
    *,
    before: Callable[[], object] | None = None,
    after_in_parent: Callable[[], object] | None = None,
    after_in_child: Callable[[], object] | None = None,
) -> None:
    """Replacement of ``os.register_at_fork`` for libraries and code.

    Its functions run when code forks, but not at a checkpoint, which must neither run code nor seed
    ``random`` again. The functions of ``threading``, ``logging`` and ``concurrent.futures``, which reset
    locks, are registered before it replaces the original and always run.
    """
    given = {"before": before, "after_in_parent": after_in_parent, "after_in_child": after_in_child}
    hooks = {when: _except_at_checkpoints(hook) for when, hook in given.items() if hook is not None}
    _register_at_fork(**hooks)


def _except_at_checkpoints(hook: Callable[[], object]) -> Callable[[], object]:
    if not callable(hook):
        return hook  # rejected by the original

    def run() -> None:
        if not _is_checkpoint_fork:
            hook()

    return run


def _thread_id_address() -> int | None:
    """Return the address at which the C library stores the main thread's id, which a fork must update."""
    address = ctypes.c_void_p()
    if _libc.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(address)):
        return None
    return address.value


class DictSnapshot:
    """The content of the dict ``target`` at the time of construction.

    It does not read the values of an unchanged dict. Reading a value changes its reference count, which
    copies a page of memory in a forked process, and the values of ``sys.modules`` are spread over about a
    thousand pages.
    """

    def __init__(self, target: dict[Any, Any]) -> None:
        self._target = target
        self._content = dict(target)
        self._seen = _version(target)

    def restore(self) -> None:
        """Restore replaced and removed items. Added items stay."""
        if _has_versions and _version(self._target) == self._seen:
            return
        self._target.update(self._content)
        self._seen = _version(self._target)


def _version(of: dict[Any, Any]) -> int:
    return _from_address(id(of) + _VERSION_OFFSET).value


def _versions_work() -> bool:
    sample: dict[str, int] = {}
    seen = {_version(sample)}
    for value in range(3):
        sample["key"] = value
        seen.add(_version(sample))
    return len(seen) == 4


_tid_address = _thread_id_address()
_has_versions = _versions_work()
