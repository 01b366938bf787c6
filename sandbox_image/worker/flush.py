"""One flush, seen from the supervisor: its blocks, its output and its outcome."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .calls import CallRelay, RunClock
from .files import FileSnapshot
from .live_output import OutputRelay
from .processes import (
    NamespaceProcess,
    living,
    oom_kills,
    process_state,
    settle,
    threads,
    wait_for_processes,
)
from .protocol import (
    CHANNEL_LOST_SIGNAL,
    EXITED,
    FINISH,
    FINISHED,
    FINISHED_WITH_DISPLAYS,
    FINISHED_WITH_TIMERS,
    NOT_SEPARABLE,
    RAN,
    RUN,
    Config,
)

_CHUNK_BYTES = 1 << 16
_PIPE_CHUNKS = 64
"""More chunks than a pipe can hold (1 MiB)."""


@dataclass
class FlushOutcome:
    """The fields of a ``result`` frame. ``exit_code`` and ``signal`` come from the wait status."""

    status: str = "ok"
    stdout: str = ""
    stderr: str = ""
    wall_seconds: float = 0.0
    exit_code: int | None = None
    signal: int | None = None
    started_at: float | None = None
    finished_at: float | None = None
    runs: list[tuple[float, float]] = field(default_factory=list)
    """Start and end of each block, in Unix seconds; one pair if the blocks ran as one script."""
    pauses: list[tuple[float, float]] = field(default_factory=list)
    """Times within the runs at which a block waited for the flush to call a tool."""
    eager_fallback: str | None = None
    """Reason why the blocks ran at the flush although eager execution was on."""


@dataclass
class FlushRun:
    """Runs the blocks of one script in ``base`` under one run limit. Time between blocks does not count.

    Neither does the time that the script waits for tools, which has its own limit, or for the flush.
    """

    base: NamespaceProcess
    checkpoint: NamespaceProcess
    config: Config
    name: str
    clock: RunClock
    stubs: list[dict[str, Any]] = field(default_factory=list)
    """Functions that code can import from ``tools``."""
    outcome: FlushOutcome = field(default_factory=FlushOutcome)
    ended: bool = False
    """The script has ended or was killed, so no further block of it runs."""
    committed: bool = False
    """The script ran to its end, and the base process holds the new state."""
    has_background_work: bool = False
    """Timers or threads are left in the base process."""
    forked: bool = False
    """Code has forked. Run as one script, the new process would run the following blocks as well."""
    wants_displays: bool = False
    """Ask for the displays of the script at its end."""
    has_displays: bool = False
    """The script has ended with open figures or a table, which ``render`` returns."""
    refused: str | None = None
    """Reason why the last block can't run alone."""
    _killed_for: str | None = None
    _calls: CallRelay | None = None
    _live: OutputRelay | None = None
    _paused_at: float = 0.0
    _stopping: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Copy the files and open the pipes.

        Raises:
            WorkerError: the files can't be copied.
        """
        self.snapshot = FileSnapshot(self.config.writable, self.config.uid, 4 * self.config.file_bytes)
        await self.snapshot.take()
        keep, limit = self.config.output_bytes, self.config.output_limit_bytes
        self._stdout = OutputCapture(keep, limit, lambda: self.kill("output_limit"))
        self._stderr = OutputCapture(keep, limit, lambda: self.kill("output_limit"))
        self._oom_kills_before = oom_kills()

    def kill(self, reason: str) -> None:
        """Kill the script. ``reason`` becomes its status."""
        if not self.ended and self._killed_for is None:
            self._killed_for = reason
            self.base.kill()

    async def run(self, block: str, *, alone: bool = False) -> None:
        """Run the next block until it or the whole script ends.

        Args:
            alone: the block may be one of several. If it must run together with the others, ``refused`` is
                set and nothing of it runs.
        """
        if self.ended:
            return
        first = self.outcome.started_at is None
        began = time.time()
        if first:
            self.outcome.started_at = began
        fds = (self._stdout.writer, self._stderr.writer) if first else ()
        request = {"name": self.name, "code": block, "alone": alone, "tools": self.stubs if first else []}
        reply = await self._command(RUN, json.dumps(request).encode(), fds)
        self.outcome.runs.append((began, self.outcome.finished_at or began))
        self._stdout.close_writer()
        self._stderr.close_writer()
        self.has_background_work = reply in (RAN[False, True], RAN[True, True])
        self.forked |= reply in (RAN[True, False], RAN[True, True])
        if reply == NOT_SEPARABLE:
            self.refused = "not_separable"
        elif alone and self.outcome.signal == CHANNEL_LOST_SIGNAL:
            self.refused = "channel_closed"
        if reply == EXITED:
            await self.finish()
            self.ended = True

    def accept_calls(self, calls: CallRelay) -> None:
        """Let the code call tools."""
        self._calls = calls
        self.base.on_call = calls.accept

    def show(self, live: OutputRelay) -> None:
        """Relay the output, from its beginning on."""
        self._live = live
        self._stdout.relay("stdout", live)
        self._stderr.relay("stderr", live)

    def hide(self) -> None:
        """Relay no more output: the run is given up."""
        if self._live is not None:
            self._live.drop()

    def on_tools(self, state: str) -> None:
        """Note that the script waits for tools, or must be stopped, or runs again; see ``CallRelay``."""
        was_stopped = self._stopping is not None
        self.clock.switch(state)
        if state in ("held", "suspended") and not was_stopped:
            self._paused_at = time.time()
            stop = self._stop_until_flush if state == "held" else self._stop_all
            self._stopping = asyncio.create_task(stop())
        elif was_stopped and state not in ("held", "suspended"):
            assert self._stopping is not None  # noqa: S101
            self._stopping.cancel()
            self._stopping = None
            self.outcome.pauses.append((self._paused_at, time.time()))
            for pid in living((self.base.pid, self.checkpoint.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            self.base.resume()

    async def stopped(self) -> None:
        """Wait until the script is stopped, if it must be."""
        if self._stopping is not None:
            await asyncio.gather(self._stopping, return_exceptions=True)

    async def _stop_all(self) -> None:
        """Stop all processes of the script, which is suspended. One that can't be stopped ends it."""
        for attempt in range(400):
            others = living((self.base.pid, self.checkpoint.pid))
            for pid in others:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            if self.base.stop() and all(process_state(pid) in ("T", "") for pid in others):
                return
            await wait_for_processes(attempt)
        self.kill("error")

    async def _stop_until_flush(self) -> None:
        """Stop the base process, whose run limit does not count, until the flush."""
        for attempt in range(200):
            if living((self.base.pid, self.checkpoint.pid)):
                break
            if self.base.stop():
                return
            await wait_for_processes(attempt)
        self.refused = "background_work"
        self.kill("given_up")

    async def finish(self) -> None:
        """End the script: there are no more blocks."""
        if self.ended:
            return
        reply = await self._command(FINISH, b"d" if self.wants_displays else b"")
        if reply in (FINISHED, FINISHED_WITH_TIMERS, FINISHED_WITH_DISPLAYS):
            self.ended = self.committed = True
            self.has_displays = reply == FINISHED_WITH_DISPLAYS
            self.has_background_work = reply == FINISHED_WITH_TIMERS or threads(self.base.pid) > 1
            self.outcome.exit_code = 0

    async def pause(self) -> bool:
        """Stop the base process between two blocks.

        Returns:
            False if a timer, thread or process of the script is active, which can't be stopped.
        """
        for attempt in range(200):
            if self.has_background_work or threads(self.base.pid) > 1:
                return False
            if living((self.base.pid, self.checkpoint.pid)):
                return False
            if self.base.stop():
                return True
            await wait_for_processes(attempt)
        return False

    async def _command(self, command: bytes, payload: bytes = b"", fds: tuple[int, ...] = ()) -> bytes:
        """Send a command and wait for its reply, at most for the time left.

        Returns:
            The reply; empty if the process ended, after recording how.
        """
        await self.base.command(command, payload, fds)
        try:
            async with self.clock.running():
                reply = await self.base.reply()
                if not reply:
                    # A script may close our descriptor and continue, so wait for its exit.
                    await self.base.exited
        except TimeoutError:
            self.kill("timeout")
            await self.base.exited
            reply = b""
        self.outcome.wall_seconds = self.clock.used["run"] + self.clock.used["tools"]
        self.outcome.finished_at = time.time()
        if self._killed_for is not None:
            await self.base.exited
            reply = b""
        if not reply:
            self.ended = True
            self._record_exit(self.base.exited.result())
        return reply

    def _record_exit(self, wait_status: int) -> None:
        code = os.waitstatus_to_exitcode(wait_status)
        if code < 0:
            self.outcome.signal = -code
        else:
            self.outcome.exit_code = code
        if self._killed_for is not None:
            self.outcome.status = self._killed_for
        elif code == -signal.SIGKILL and oom_kills() > self._oom_kills_before:
            self.outcome.status = "oom"
        elif code != 0:
            self.outcome.status = "error"

    async def close(self) -> None:
        """Kill remaining processes, read the rest of the output, and restore files after a failure."""
        self.base.on_call = None
        if self._stopping is not None:
            self._stopping.cancel()
            self._stopping = None
        if self._calls is not None:
            self._calls.close()
        if not self.committed:
            self.base.kill()
            await self.base.exited
        keep = [self.base, self.checkpoint] if self.committed else [self.checkpoint]
        # Stopped only after the next checkpoint, which is forked right away: the owner waits for this result.
        await settle(keep, self.config.uid, stop=False)
        self.outcome.stdout = self._stdout.close()
        self.outcome.stderr = self._stderr.close()
        if self._live is not None:
            self._live.close()
        if not self.committed:
            await self.snapshot.restore()
        self.snapshot.drop()

    def as_frame(self) -> dict[str, Any]:
        return {"op": "result", **vars(self.outcome)}


class OutputCapture:
    """Reader of one pipe that never lets a writer block for long and keeps at most ``keep`` bytes.

    Args:
        keep: bytes to keep: half from the start of the stream, half from its end.
        limit: number of bytes after which ``on_limit`` is called, once.
    """

    def __init__(self, keep: int, limit: int, on_limit: Callable[[], None]) -> None:
        self.head = bytearray()
        self.tail: deque[bytes] = deque()
        self.total = 0
        self._head_size = keep // 2
        self._tail_size = keep - self._head_size
        self._tail_bytes = 0
        self._limit = limit
        self._on_limit = on_limit
        self._live: tuple[str, OutputRelay] | None = None
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._reader, self._read)

    def _read(self) -> bool:
        """Read one chunk. Return False if there is nothing to read."""
        try:
            chunk = os.read(self._reader, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            self._loop.remove_reader(self._reader)
            return False
        self._add(chunk)
        if self._live is not None:
            stream, live = self._live
            live.add(stream, chunk)
        return True

    def relay(self, stream: str, live: OutputRelay) -> None:
        """Pass the output on to ``live``, from its beginning as far as it was kept."""
        self._live = stream, live
        live.add(stream, bytes(self.head))
        if self.total > len(self.head):
            live.skip(stream)

    def _add(self, chunk: bytes) -> None:
        within_limit = self.total <= self._limit
        self.total += len(chunk)
        room = self._head_size - len(self.head)
        if room > 0:
            self.head += chunk[:room]
            chunk = chunk[room:]
        if chunk:
            self.tail.append(chunk)
            self._tail_bytes += len(chunk)
            while self._tail_bytes - len(self.tail[0]) >= self._tail_size:
                self._tail_bytes -= len(self.tail.popleft())
        if within_limit and self.total > self._limit:
            self._on_limit()

    def close_writer(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def close(self) -> str:
        """Read the rest of the pipe, close it, and return the text, with a note on the bytes left out."""
        for _ in range(_PIPE_CHUNKS):  # bounded: a writer may still exist
            if not self._read():
                break
        self.close_writer()
        self._loop.remove_reader(self._reader)
        os.close(self._reader)
        tail = b"".join(self.tail)[-self._tail_size :]
        left_out = self.total - len(self.head) - len(tail)
        if not left_out:
            return decode(bytes(self.head) + tail)
        head, tail = trim_end(self.head), trim_start(tail)
        return f"{decode(head)}\n... [{left_out} bytes left out] ...\n{decode(tail)}"


def decode(data: bytes) -> str:
    return data.decode("utf-8", errors="backslashreplace")


def trim_end(data: bytes | bytearray) -> bytes:
    """Return ``data`` without an incomplete UTF-8 character at its end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue  # a continuation byte; the first byte of the character is further back
        length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return bytes(data[:-back] if length > back else data)
    return bytes(data)


def trim_start(data: bytes) -> bytes:
    """Return ``data`` without an incomplete UTF-8 character at its start."""
    skip = 0
    while skip < min(3, len(data)) and data[skip] & 0xC0 == 0x80:
        skip += 1
    return data[skip:]
