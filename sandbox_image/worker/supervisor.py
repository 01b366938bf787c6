"""PID 1 of a sandbox container: takes frames from the runner, runs flushes, and vouches for their outcome.

It never runs a line of the tenant's code and reads no more than a byte at a time from processes that did.
When it can no longer vouch for the container it says so and exits, which ends every process in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import signal
import socket
import struct
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn

from .config import Config
from .flush import Flush
from .processes import NamespaceProcess, WorkerError, as_user, reap
from .script import separable

_LENGTH = struct.Struct("!I")
_IMPORT_SECONDS = 120.0  # the runner's own patience ends sooner
_FORK_SECONDS = 10.0
_CHECK_SECONDS = 2.0


class Supervisor:
    """The state of one container: its two namespace processes and the pending blocks."""

    def __init__(self, out: int, base: NamespaceProcess, config: Config) -> None:
        self.config = config
        self.base = base
        self.spare = base  # until the first checkpoint
        self.known = [base]
        self._out = out
        self._run_limit = 0.0
        self._eager = False
        self._flushes = 0
        self._blocks: list[str] = []
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._ahead: asyncio.Task[Flush | None] | None = None
        self._checks: list[asyncio.Task[None]] = []
        self._flush: Flush | None = None
        self._inseparable = False

    async def start(self) -> None:
        """Wait for the first namespace, fork its checkpoint, and tell the runner."""
        await self._hello(self.base, _IMPORT_SECONDS)
        self.spare = await self._checkpoint()
        self._send({"op": "ready", "python": platform.python_version(), "pid": os.getpid()})

    async def handle(self, frame: dict[str, Any]) -> None:
        operation = frame["op"]
        if operation == "open":
            self._run_limit, self._eager = float(frame["run_limit_s"]), bool(frame["eager"])
        elif operation == "invoke":
            self._invoke(frame["code"])
        elif operation == "flush":
            await self._finish()
        else:
            raise WorkerError(f"unknown operation {operation!r}")

    def _invoke(self, code: str) -> None:
        """A pending block: with eager execution it starts as soon as those before it are done."""
        self._blocks.append(code)
        if not self._eager or self._inseparable:
            return
        if self._ahead is None:
            self._ahead = asyncio.create_task(self._run_ahead())
        else:
            self._checks.append(asyncio.create_task(self._check(list(self._blocks))))
        self._queue.put_nowait(code)

    async def _check(self, blocks: list[str]) -> None:
        """Give up running block by block if that is not the same as running the whole."""
        same = await as_user(self.config.uid, lambda: _require(separable(blocks)), seconds=_CHECK_SECONDS)
        if not same:
            self._inseparable = True
            if self._flush is not None:
                self._flush.kill("given_up")

    async def _run_ahead(self) -> Flush | None:
        """Run blocks as they come until the flush (a None). None if it must all be run anew at the flush."""
        flush = self._flush = await self._begin()
        while not self._inseparable:
            block = await self._queue.get()
            if block is None:
                await asyncio.gather(*self._checks)
                if not self._inseparable:
                    await flush.finish()
                    return flush
                break
            if flush.forked:
                self._inseparable = True
                break
            await flush.run(block)
            await asyncio.gather(*self._checks)  # a check is a process too, and would pass for a stray
            if self._queue.empty() and not flush.over and not flush.quiet():
                self._inseparable = True  # it would go on while the model writes
        # Undone at once, so that the flush has nothing to wait for.
        flush.kill("given_up")
        flush.kept = False
        await self._end(flush)
        self.spare = await self._checkpoint()
        return None

    async def _finish(self) -> None:
        flush = None
        if self._ahead is not None:
            self._queue.put_nowait(None)
            flush = await self._ahead
        if flush is None:
            flush = await self._begin()
            await flush.run("\n".join(self._blocks))
            await flush.finish()
        for check in self._checks:
            check.cancel()
        self._ahead, self._flush, self._inseparable = None, None, False
        self._blocks, self._checks, self._queue = [], [], asyncio.Queue()
        self._flushes += 1
        await self._end(flush)
        self._send(flush.as_frame())
        await self._settle(flush)

    async def _begin(self) -> Flush:
        flush = Flush(self.base, self.spare, self.config, f"<call {self._flushes + 1}>", self._run_limit)
        await flush.begin()
        return flush

    async def _end(self, flush: Flush) -> None:
        """Close a flush; if it is not kept, the checkpoint takes the base's place."""
        await flush.close()
        if not flush.kept:
            self._fall_back()

    async def _settle(self, flush: Flush) -> None:
        """After the answer, so that nobody waits for it: a checkpoint of the state that now holds."""
        if flush.kept:
            self._drop(self.spare)
        self.spare = await self._checkpoint()
        if flush.kept and flush.restless:
            # A fork has no threads and no timers: the state goes on in one.
            self._fall_back()
            self.spare = await self._checkpoint()

    def _fall_back(self) -> None:
        if self.spare.exited.done():
            raise WorkerError("the checkpoint was killed")
        self._drop(self.base)
        self.base = self.spare

    async def _checkpoint(self) -> NamespaceProcess:
        ours, theirs = socket.socketpair()
        spare = NamespaceProcess(ours)
        self.known.append(spare)
        spare.token = await self.base.command(b"C", fds=[theirs.fileno()])
        theirs.close()
        await self._hello(spare, _FORK_SECONDS)
        return spare

    async def _hello(self, process: NamespaceProcess, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                if await process.reply() == b"k" and process.pid > 1:
                    return
        except TimeoutError:
            pass
        raise WorkerError("a namespace process did not start")

    def _drop(self, process: NamespaceProcess) -> None:
        process.kill()
        process.close()
        self.known.remove(process)

    def _send(self, frame: dict[str, Any]) -> None:
        send_frame(self._out, frame)


def _require(condition: bool) -> None:
    if not condition:
        raise WorkerError


def send_frame(fd: int, frame: dict[str, Any]) -> None:
    data = json.dumps(frame).encode()
    data = _LENGTH.pack(len(data)) + data
    while data:
        data = data[os.write(fd, data) :]


async def read_frame(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next frame: a length (u32, big endian) and that many bytes of JSON."""
    (size,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    frame: dict[str, Any] = json.loads(await reader.readexactly(size))
    return frame


async def _serve(channel_in: int, channel_out: int, control: socket.socket, pid: int, config: Config) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(channel_in, "rb"))
    supervisor = Supervisor(channel_out, NamespaceProcess(control, pid), config)
    loop.add_signal_handler(signal.SIGCHLD, lambda: reap(supervisor.known))
    reap(supervisor.known)
    await supervisor.start()
    while True:
        await supervisor.handle(await read_frame(reader))


def supervise(
    channel_in: int, channel_out: int, control: socket.socket, pid: int, config: Config
) -> NoReturn:
    """Serve until the channel closes, the lifetime is over or something can't be vouched for."""
    code = 0

    async def bounded(serving: Coroutine[Any, Any, None]) -> None:
        async with asyncio.timeout(config.max_lifetime_s):
            await serving

    try:
        asyncio.run(bounded(_serve(channel_in, channel_out, control, pid, config)))
    except (asyncio.IncompleteReadError, TimeoutError, ConnectionError):
        pass  # the runner has gone, or our time is up
    except BaseException as error:
        code = 1
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        with contextlib.suppress(OSError):
            send_frame(channel_out, {"op": "fatal", "reason": f"{type(error).__name__}: {error}"})
    os._exit(code)
