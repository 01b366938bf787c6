"""The process that holds an episode's namespace and runs its blocks.

Two such processes exist at any time: the *base*, which runs code, and its *checkpoint*, a fork taken before
the code ran. If the flush succeeds the checkpoint is dropped; if it fails the base is killed and the
checkpoint takes its place. So a failure leaves no trace in memory, and no object is ever serialised.

Nothing here is trusted by the supervisor: code that has run can have changed any of it. It learns how a
process ended from the kernel.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import importlib
import io
import json
import os
import resource
import signal
import socket
import struct
import sys
import threading
from types import ModuleType
from typing import NoReturn, TextIO

from .config import Config
from .fork import fork_sibling as _fork_sibling
from .pristine import Pristine
from .script import Script

HEADER = struct.Struct("!c8sI")
"""A command: its letter, the token that its reply must repeat, the size of its payload."""
NO_TOKEN = bytes(8)
RAN = {(False, False): b"d", (False, True): b"u", (True, False): b"p", (True, True): b"q"}
"""Replies of a block that ran to its end: has it forked, does it leave timers running?"""
PREIMPORT = ("numpy", "sympy", "mpmath", "scipy.optimize")
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONWARNINGS": "ignore",
}
_RESERVED_FILES = 16  # descriptors that code can't use up, so that the next command can always be received
_OOM_SCORE = 500  # the kernel's first choice when memory runs out is code, not the supervisor

# Code may replace these in their modules; what runs between its blocks must not depend on that.
_loads, _recv_fds = json.loads, socket.recv_fds
_open, _close, _dup2, _write = os.open, os.close, os.dup2, os.write
_getpid, _setresuid, _setsid, _exit = os.getpid, os.setresuid, os.setsid, os._exit


class Namespace:
    """Serves the supervisor's commands: R(un a block), F(inish the script), C(heckpoint)."""

    def __init__(self, control: socket.socket, config: Config) -> None:
        self.control = control
        self.config = config
        self.token = NO_TOKEN
        # Code gets a twin of builtins: what it replaces there is not replaced here.
        self.builtins = ModuleType("builtins")
        self.builtins.__dict__.update(builtins.__dict__)
        sys.modules["builtins"] = self.builtins
        self.main = ModuleType("__main__")
        self.main.__dict__["__builtins__"] = self.builtins
        self.script = Script("", self.main.__dict__)
        self.stderr: TextIO = sys.stderr
        self.forked = False
        """Code has made a process that runs on in the script, as it does itself."""
        os.register_at_fork(after_in_parent=self.note_fork)
        sys.modules["__main__"] = self.main
        self.pristine = Pristine(self.builtins.__dict__), Pristine(sys.modules)

    def serve(self) -> NoReturn:
        while True:
            header, fds, *_ = _recv_fds(self.control, HEADER.size, 2)
            if not header:
                _exit(0)
            while len(header) < HEADER.size:
                header += self.control.recv(HEADER.size - len(header))
            command, self.token, size = HEADER.unpack(header)
            payload = b""
            while len(payload) < size:
                payload += self.control.recv(min(size - len(payload), 1 << 20))
            if command == b"R":
                self.run(_loads(payload), fds)
            elif command == b"F":
                self.finish()
            else:
                self.checkpoint(socket.socket(fileno=fds[0]))

    def run(self, request: dict[str, str], fds: list[int]) -> None:
        """Run one block; the first of a script comes with the pipes that take its output."""
        if fds:
            self.enter(fds)
            self.script = Script(request["name"], self.main.__dict__)
        pid = _getpid()
        self.forked = False
        reply = b"d"
        try:
            self.script.run(request["code"])
        except SystemExit as leaving:
            self.script.value = None
            code = leaving.code
            if code is not None and not isinstance(code, int):
                self.stderr.write(f"{code}\n")
                code = 1
            if code and code & 0xFF:
                self.leave_process(code & 0xFF)
            reply = b"e"
        except BaseException as error:
            self.die_of(error)
        if _getpid() != pid:
            self.leave_process(0)  # a fork made by the code has come to the end of the script
        self.flush_streams()
        if reply == b"d":
            reply = RAN[self.forked, timers_run()]
        self.reply(reply)

    def note_fork(self) -> None:
        self.forked = True

    def finish(self) -> None:
        """Show the last value, wait for the script's threads as Python itself does, and come to rest."""
        try:
            self.script.show()
            join_threads()
        except BaseException as error:
            self.die_of(error)
        self.flush_streams()
        timers = timers_run()
        self.rest()
        self.reply(b"u" if timers else b"f")

    def enter(self, pipes: list[int]) -> None:
        for target, fd in enumerate(pipes, start=1):
            _dup2(fd, target)
            _close(fd)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = text_stream(1)
        sys.stderr = self.stderr = text_stream(2)
        for content in self.pristine:
            content.restore()
        limit = self.config.open_files
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit - _RESERVED_FILES, limit))
        if self.config.uid:
            _setresuid(self.config.uid, self.config.uid, self.config.uid + 1)

    def rest(self) -> None:
        if self.config.uid:
            _setresuid(self.config.uid + 1, self.config.uid, self.config.uid + 1)
        limit = self.config.open_files
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        null = _open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            _dup2(null, fd)
        if null > 2:
            _close(null)

    def checkpoint(self, control: socket.socket) -> None:
        """Fork a copy that answers on ``control``."""
        if not _fork_sibling():
            control.close()
            return
        self.control.close()
        self.control = control
        _setsid()
        self.reply(b"k")

    def die_of(self, error: BaseException) -> NoReturn:
        try:
            self.script.report(error, self.stderr)
        except BaseException:
            with contextlib.suppress(BaseException):
                _write(2, f"{type(error).__name__}\n".encode())
        self.leave_process(1)

    def leave_process(self, code: int) -> NoReturn:
        self.flush_streams()
        _exit(code)

    def flush_streams(self) -> None:
        for stream in (sys.stdout, sys.stderr, self.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()

    def reply(self, message: bytes) -> None:
        try:
            self.control.sendall(self.token + message)
        except OSError:
            _exit(0)  # code closed our descriptor: it ended well, but nothing can be kept


def text_stream(fd: int) -> TextIO:
    """A stream on ``fd`` that can encode anything and hands on every line at once: a kill loses little."""
    raw = open(fd, "wb", closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)


def timers_run() -> bool:
    """Would an alarm go off while the process rests?"""
    kinds = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
    return any(signal.getitimer(kind)[0] for kind in kinds)


def join_threads() -> None:
    """Wait for the threads that are not daemons. Workers of an executor idle for ever and are left out."""
    executors = sys.modules.get("concurrent.futures.thread")
    workers = getattr(executors, "_threads_queues", {})
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread() and thread not in workers:
            thread.join()


def become_namespace(control: socket.socket, config: Config) -> NoReturn:
    """Turn this process, a fork of the supervisor, into the first namespace. Never returns."""
    os.setsid()
    os.nice(5)  # when code takes every cycle, the supervisor still gets its turn
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
    # Neither the worker's own directory nor the current one: an import finds what is installed.
    sys.path[:] = [path for path in sys.path if path not in ("", os.path.dirname(os.path.dirname(__file__)))]
    sys.argv = [""]
    for name in PREIMPORT:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if config.address_space_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (config.address_space_bytes, config.address_space_bytes))
    if config.processes:
        resource.setrlimit(resource.RLIMIT_NPROC, (config.processes, config.processes))
    gc.collect()
    gc.freeze()
    namespace = Namespace(control, config)
    namespace.rest()
    namespace.reply(b"k")
    namespace.serve()
