"""PID 1 of a sandbox: receives frames from the owner, runs flushes and reports their outcomes.

It never runs code of the tenant, and reads one byte at a time from processes that did. If it can no longer
guarantee the state of the sandbox, it sends a ``fatal`` frame and exits, which ends every process in the
sandbox.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import platform
import select
import signal
import socket
import struct
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn

from .calls import NO_TOOLS, CallRelay, RunClock, ToolConfig
from .displays import HTML, MAX_BYTES, MEDIA_TYPES, parse_displays
from .exchange import Inputs, WorkFiles
from .files import FileSnapshot, is_empty, modes
from .flush import FlushRun
from .live_output import OutputRelay
from .processes import NamespaceProcess, WorkerError, as_user, cpu_seconds, kept_pids, reap, settle
from .protocol import (
    CALL_DENIED,
    CALL_FAILED,
    CALL_OK,
    CHECKPOINT,
    RENDER,
    RENDERING,
    SEED,
    STARTED,
    STARTED_SHARING,
    Config,
)
from .script import compiles_alone, runs_one_by_one

_LENGTH = struct.Struct("!I")
_IMPORT_TIMEOUT_S = 120.0  # the owner's start timeout is shorter
_FORK_TIMEOUT_S = 10.0
_FORK_CPU_S = 2.0
_CHECK_TIMEOUT_S = 5.0
_POLL_S = 0.2
_CHANNEL_BYTES = 1 << 20
_RENDER_TIMEOUT_S = 10.0


class Supervisor:
    """The state of one sandbox: its namespace processes and the pending blocks.

    With eager execution each block runs as soon as the previous ones are done. That is given up, and all
    blocks run as one script at the flush, if the result could differ. The reason is ``_fallback``:

    * ``not_separable``: a block must run together with the others.
    * ``forked``: code has forked, and the new process would run the following blocks too.
    * ``background_work``: a process, thread or timer is active between two blocks.
    * ``shared_state``: the namespace holds pipes, sockets or shared memory. A run could not be undone.
    * ``channel_closed``: code has closed the descriptor of its control socket.

    A call of a tool with side effects waits for the flush, with its process stopped. It is passed on only if
    all blocks can run one by one, so that nothing is called twice. The owner answers the calls of a second
    run, which have the attempt 2, with the results of the first.
    """

    def __init__(self, out: int, base: NamespaceProcess, config: Config) -> None:
        self.config = config
        self.base = base
        self.checkpoint = base  # until the first checkpoint
        self.processes = [base]
        self._initial: NamespaceProcess | None = None
        """Copy of the base process that has run no code, for ``_reset``. None if not ``reusable``."""
        self._initial_scheduling: object = None  # code can change it
        self._modes = modes(config.writable)
        self._out = out
        self._out_poll = select.poll()
        self._out_poll.register(out, select.POLLOUT)
        self._run_limit_s = 0.0
        self._eager = False
        self._report_settled = False
        """Send a frame when all is stopped after a flush. An owner may freeze the sandbox then."""
        self._flushes = 0
        self._blocks: list[str] = []
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._eager_run: asyncio.Task[FlushRun | None] | None = None
        self._fallback: str | None = None
        self._figures: str | None = None
        """Format of the figures to render; None if the session takes no files out."""
        self.inputs = Inputs(config.inputs, config.uid)
        self._files = WorkFiles(config.home, config.uid, 2 * config.file_bytes)
        self._has_displays = False
        self._displays: list[tuple[str, bytes]] = []
        """Media type and content of the displays of the last flush."""
        self._figures_seen: set[bytes] = set()
        self._tools = NO_TOOLS
        self._calls: CallRelay | None = None
        """Calls of the current run."""
        self._flush: FlushRun | None = None
        """The current run."""
        self._eager_flush: FlushRun | None = None
        self._released = False
        """The flush was requested, so an eager run may call tools with side effects."""
        self._live = False
        """The flush was requested with live output."""
        self._next_call = itertools.count(1).__next__

    async def start(self) -> None:
        """Wait for the first namespace, fork its checkpoint, and report that the worker is ready."""
        await self._wait_until_started(self.base, _IMPORT_TIMEOUT_S)
        if self.config.reusable:
            await self._fork_initial()
        else:
            self.checkpoint = await self._fork_checkpoint()
        self._send({"op": "ready", "python": platform.python_version(), "pid": os.getpid()})

    async def handle(self, frame: dict[str, Any]) -> None:
        operation = frame["op"]
        if operation == "open":
            self._run_limit_s, self._eager = float(frame["run_limit_s"]), bool(frame["eager"])
            self._figures = frame.get("figures")
            self._tools = _tool_config(frame)
            self._report_settled = bool(frame.get("report_settled"))
        elif operation == "invoke":
            self._add_block(frame["code"])
        elif operation == "flush":
            self._live = bool(frame.get("live_output"))
            await self._flush_blocks()
            self._live = False
        elif operation == "put":
            if frame["error"] is None:
                await self.inputs.extract_text(frame["name"])
            self._send({"op": "done", "error": frame["error"]})
        elif operation == "remove":
            self._send({"op": "done", "error": self.inputs.remove(frame["name"])})
        elif operation == "discard":
            await self._discard_blocks()
            self._send({"op": "done", "error": None})
        elif operation == "reset":
            await self._reset()
            self._send({"op": "done", "error": None})
        elif operation == "files":
            await self._list_files()
        elif operation == "read":
            await self._read(frame)
        else:
            raise WorkerError(f"unknown operation {operation!r}")

    def answer_call(self, frame: dict[str, Any]) -> None:
        """Pass on the result of a call of a tool."""
        if self._calls is not None:
            state = CALL_DENIED if frame.get("denied") else CALL_OK if frame["ok"] else CALL_FAILED
            self._calls.answer(int(frame["id"]), state, frame["value"])

    async def suspend(self) -> None:
        """Stop the script of the flush, which waits for tools, until ``resume``."""
        if self._calls is not None and self._flush is not None:
            self._calls.suspend()
            await self._flush.stopped()
        self._send({"op": "suspended"})

    def resume(self) -> None:
        """Undo ``suspend``."""
        if self._calls is not None:
            self._calls.resume()

    def _add_block(self, code: str) -> None:
        self._blocks.append(code)
        if not self._eager or self._fallback is not None:
            return
        if self._eager_run is None:
            if self.checkpoint.shares_state:
                self._fallback = "shared_state"
                return
            self._eager_run = asyncio.create_task(self._run_eagerly())
        self._queue.put_nowait(code)

    async def _run_eagerly(self) -> FlushRun | None:
        """Run blocks from the queue until the flush, which is None in the queue.

        Returns:
            The flush; None if its blocks must all run again as one script.
        """
        flush = await self._begin_flush(attempt=1, released=False)
        never_run: list[str] = []  # because the script has ended
        while (block := await self._queue.get()) is not None:
            if self._fallback is not None:
                break
            if flush.ended:
                never_run.append(block)
                continue
            if flush.forked:
                self._fallback = "forked"
                break
            await flush.run(block, alone=True)
            self._fallback = self._fallback or flush.refused
            if self._fallback is None and self._queue.empty() and not flush.ended and not await flush.pause():
                self._fallback = "background_work"  # it would keep running while the model writes
            if self._fallback is not None:
                break
        else:
            self._fallback = self._fallback or await self._check(never_run)
            if self._fallback is None:
                await flush.finish()
                return flush
        # Undone immediately, so that the flush need not wait for it.
        self._eager_flush = None
        flush.hide()
        flush.kill("given_up")
        flush.committed = False
        await self._end_flush(flush)
        self.checkpoint = await self._fork_checkpoint()
        return None

    async def _check(self, blocks: list[str]) -> str | None:
        """Return the reason why ``blocks``, which come after the end of the script, could change its result.

        A syntax error in them means that nothing of the script runs.
        """
        if not blocks:
            return None
        fits = await as_user(
            self.config.uid, lambda: _require(compiles_alone(blocks)), seconds=_CHECK_TIMEOUT_S
        )
        return None if fits else "not_separable"

    async def _flush_blocks(self) -> None:
        flush = None
        if self._eager_run is not None:
            if self._eager_flush is not None:
                self._show(self._eager_flush, attempt=1)
            await self._release_calls()
            self._queue.put_nowait(None)
            flush = await self._eager_run
        if flush is None:
            flush = await self._begin_flush(attempt=1 if self._eager_run is None else 2, released=True)
            await flush.run("\n".join(self._blocks))
            await flush.finish()
            flush.outcome.eager_fallback = self._fallback
        self._forget_blocks()
        self._flushes += 1
        await self._end_flush(flush)
        self._has_displays = flush.committed and flush.has_displays
        self._send(flush.as_frame())
        await self._update_checkpoint(flush)
        if self._report_settled:
            self._send({"op": "settled"})

    async def _discard_blocks(self) -> None:
        """Drop the pending blocks, and undo them if they have run."""
        if self._eager_run is not None:
            while self._eager_flush is None and not self._eager_run.done():  # noqa: ASYNC110  (it copies files)
                await asyncio.sleep(0.001)
            if self._eager_flush is not None:
                self._eager_flush.kill("given_up")
            self._queue.put_nowait(None)
            flush = await self._eager_run
            if flush is not None:
                if not flush.ended:
                    flush.kill("given_up")
                flush.committed = False
                await self._end_flush(flush)
                self.checkpoint = await self._fork_checkpoint()
        self._forget_blocks()

    def _forget_blocks(self) -> None:
        self._eager_run, self._fallback = None, None
        self._eager_flush, self._released = None, False
        self._blocks, self._queue = [], asyncio.Queue()

    async def _fork_initial(self) -> None:
        """Fork the process that replaces the base at the next reset. The base must not have run any code.

        Afterwards the base gets its own seeds and its own standard input, and a checkpoint.
        """
        self._initial = await self._fork_checkpoint()
        self._initial_scheduling = self._initial.scheduling()
        kept_pids.clear()
        kept_pids.add(self._initial.pid)
        await self.base.command(SEED)
        await self._wait_until_started(self.base, _FORK_TIMEOUT_S)
        self.checkpoint = await self._fork_checkpoint()

    async def _reset(self) -> None:
        """Restore the state in which the sandbox started: initial process, no files, no inputs.

        Raises:
            WorkerError: the sandbox is not reusable, code has ended or changed the initial process, or a file
                remains.
        """
        await self._discard_blocks()
        if self._initial is None:
            raise WorkerError("the sandbox is not reusable")
        if self._initial.exited.done():
            raise WorkerError("the initial process has ended")
        self._drop(self.base)
        self._drop(self.checkpoint)
        self.base = self._initial
        await settle([self.base], self.config.uid)
        if self.base.scheduling() != self._initial_scheduling:
            raise WorkerError("the scheduling of the initial process has changed")
        # A snapshot that was not taken is empty, so restoring it removes all files.
        await FileSnapshot(self.config.writable, self.config.uid, 0).restore()
        emptied = self.inputs.clear() and is_empty(self.config.writable)
        if not emptied or modes(self.config.writable) != self._modes:
            raise WorkerError("some files could not be removed")
        self._files.close()
        self._files = WorkFiles(self.config.home, self.config.uid, 2 * self.config.file_bytes)
        self._displays, self._figures_seen, self._has_displays = [], set(), False
        self._tools, self._calls, self._flush, self._flushes = NO_TOOLS, None, None, 0
        await self._fork_initial()

    async def _list_files(self) -> None:
        """Send the files that were changed since the last listing, and the displays of the last flush."""
        self._files.close()
        await self._render()
        changes = await self._files.changes()
        if changes is None:
            raise WorkerError("the work files can't be listed")
        displays = [
            {"type": kind, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for kind, content in self._displays
        ]
        self._send({"op": "files", **changes, "displays": displays})

    async def _render(self) -> None:
        """Render the displays of the last flush."""
        self._displays = []
        if not self._has_displays:
            return
        self._has_displays = False
        reader, writer = os.pipe()
        try:
            os.set_blocking(reader, False)
            await self.base.command(RENDER, (self._figures or "").encode(), [writer])
            os.close(writer)
            writer = -1
            reply = await asyncio.wait_for(self.base.reply(), _RENDER_TIMEOUT_S)
            data = (
                await _read_pipe(reader, MAX_BYTES + 1024, _RENDER_TIMEOUT_S) if reply == RENDERING else b""
            )
        except TimeoutError:
            data = b""
        finally:
            os.close(reader)
            if writer >= 0:
                os.close(writer)
        await settle([self.base, self.checkpoint], self.config.uid)
        # A figure that stays open is rendered again after the next flush; only changes are new displays.
        rendered = parse_displays(data)
        self._displays = [
            item for item in rendered if item[0] == MEDIA_TYPES[HTML] or item[1] not in self._figures_seen
        ]
        self._figures_seen = {content for _, content in rendered}

    async def _read(self, frame: dict[str, Any]) -> None:
        """Send a part of a file or of a display."""
        offset, size = frame["offset"], frame["size"]
        data: bytes | None
        if "display" in frame:
            data = self._displays[frame["display"]][1][offset : offset + size]
        else:
            data = await self._files.read(frame["path"], offset, size)
        encoded = None if data is None else base64.b64encode(data).decode()
        self._send({"op": "data", "data": encoded})

    async def _release_calls(self) -> None:
        """Let the eager run call tools with side effects, if nothing of it can have to run again."""
        if not self._tools.have_effects:
            return
        blocks = self._blocks
        if len(blocks) > 1 and not await as_user(
            self.config.uid, lambda: _require(runs_one_by_one(blocks)), seconds=_CHECK_TIMEOUT_S
        ):
            self._fallback = self._fallback or "not_separable"
            if self._eager_flush is not None:
                self._eager_flush.kill("given_up")
            return
        self._released = True
        if self._calls is not None:
            self._calls.release()

    async def _begin_flush(self, *, attempt: int, released: bool) -> FlushRun:
        name = f"<call {self._flushes + 1}>"
        clock = RunClock(self._run_limit_s, self._tools.wait_s)
        flush = FlushRun(self.base, self.checkpoint, self.config, name, clock, self._tools.stubs)
        flush.wants_displays = self._figures is not None
        self._flush = flush
        await flush.begin()
        self._eager_flush = None if released else flush
        self._show(flush, attempt)
        if self._tools.stubs:
            self._calls = CallRelay(
                self._tools,
                self._send,
                self._next_call,
                attempt=attempt,
                released=released or self._released,
                on_state=flush.on_tools,
            )
            flush.accept_calls(self._calls)
        return flush

    def _show(self, flush: FlushRun, attempt: int) -> None:
        """Send the output of a run to the owner from now on, if the requested flush wants that."""
        if self._live:
            flush.show(OutputRelay(self._send, self._is_writable, attempt))

    def _is_writable(self) -> bool:
        """Return whether the channel takes a small frame without waiting."""
        return any(events & select.POLLOUT for _, events in self._out_poll.poll(0))

    async def _end_flush(self, flush: FlushRun) -> None:
        """Close a flush. If it is not committed, the checkpoint replaces the base."""
        await flush.close()
        if not flush.committed:
            self._fall_back()

    async def _update_checkpoint(self, flush: FlushRun) -> None:
        """Fork a checkpoint of the new state. The result was already sent, so the owner does not wait."""
        if flush.committed:
            self._drop(self.checkpoint)
        self.checkpoint = await self._fork_checkpoint()
        if flush.committed and flush.has_background_work:
            # A fork has no threads and no timers, so continue with the fork.
            self._fall_back()
            self.checkpoint = await self._fork_checkpoint()
            self._has_displays = False  # rendered by the process that has ended

    def _fall_back(self) -> None:
        if self.checkpoint.exited.done():
            raise WorkerError("the checkpoint was killed")
        self._drop(self.base)
        self.base = self.checkpoint

    async def _fork_checkpoint(self) -> NamespaceProcess:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        checkpoint = NamespaceProcess(ours)
        self.processes.append(checkpoint)
        checkpoint.token = await self.base.command(CHECKPOINT, fds=[theirs.fileno()])
        theirs.close()
        await self._wait_until_started(checkpoint, _FORK_TIMEOUT_S, _FORK_CPU_S)
        await settle([self.base, checkpoint], self.config.uid)
        return checkpoint

    async def _wait_until_started(
        self, process: NamespaceProcess, seconds: float, cpu: float = float("inf")
    ) -> None:
        """Wait for the first reply of a process.

        Raises:
            WorkerError: it did not come within ``seconds``, or the sandbox used more than ``cpu`` seconds of
                CPU time.
        """
        cpu += cpu_seconds()
        reply = asyncio.ensure_future(process.reply())
        try:
            async with asyncio.timeout(seconds):
                while not reply.done() and cpu_seconds() <= cpu:
                    await asyncio.wait([reply], timeout=_POLL_S)
        except TimeoutError:
            pass
        if not reply.done() or reply.result() not in (STARTED, STARTED_SHARING) or process.pid <= 1:
            reply.cancel()
            raise WorkerError("a namespace process did not start")
        process.shares_state = reply.result() == STARTED_SHARING

    def _drop(self, process: NamespaceProcess) -> None:
        process.kill()
        process.close()
        self.processes.remove(process)

    def _send(self, frame: dict[str, Any]) -> None:
        send_frame(self._out, frame)


async def _read_pipe(fd: int, limit: int, seconds: float) -> bytes:
    """Read from a pipe until its end, at most ``limit`` bytes within ``seconds``."""
    loop = asyncio.get_running_loop()
    deadline, data = loop.time() + seconds, bytearray()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        while len(data) < limit and (left := deadline - loop.time()) > 0:
            readable.clear()
            try:
                chunk = os.read(fd, 1 << 16)
            except BlockingIOError:
                await asyncio.wait_for(readable.wait(), left)
                continue
            if not chunk:
                return bytes(data)
            data += chunk
    except TimeoutError:
        pass
    finally:
        loop.remove_reader(fd)
    return bytes(data)


def _tool_config(frame: dict[str, Any]) -> ToolConfig:
    """Return the tools in an ``open`` frame. A later frame without tools takes them away."""
    if "tools" not in frame:
        return NO_TOOLS
    return ToolConfig(
        stubs=frame["tools"],
        read_only=frozenset(frame["read_only"]),
        announced=frozenset(frame.get("announced", ())),
        max_calls=int(frame["max_calls"]),
        wait_s=float(frame["tool_wait_s"]),
    )


def _require(condition: bool) -> None:
    if not condition:
        raise WorkerError


def send_frame(fd: int, frame: dict[str, Any]) -> None:
    data = json.dumps(frame).encode()
    data = _LENGTH.pack(len(data)) + data
    while data:
        data = data[os.write(fd, data) :]


async def read_frame(reader: asyncio.StreamReader) -> dict[str, Any]:
    """Read the next frame: a length (u32, big endian) and that many bytes of JSON."""
    (size,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    frame: dict[str, Any] = json.loads(await reader.readexactly(size))
    return frame


async def _serve(channel_in: int, channel_out: int, control: socket.socket, pid: int, config: Config) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):  # fewer switches between the processes that pass an input on
        fcntl.fcntl(channel_in, fcntl.F_SETPIPE_SZ, _CHANNEL_BYTES)
    reader = asyncio.StreamReader(limit=_CHANNEL_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(channel_in, "rb"))
    supervisor = Supervisor(channel_out, NamespaceProcess(control, pid), config)
    loop.add_signal_handler(signal.SIGCHLD, lambda: reap(supervisor.processes))
    reap(supervisor.processes)
    await supervisor.start()
    frames: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def handle_all() -> NoReturn:
        while True:
            await supervisor.handle(await frames.get())

    async def read_all() -> NoReturn:
        while True:
            frame = await read_frame(reader)
            if frame["op"] == "tool_result":  # a flush waits for it
                supervisor.answer_call(frame)
            elif frame["op"] == "suspend":
                await supervisor.suspend()
            elif frame["op"] == "resume":
                supervisor.resume()
            else:
                if frame["op"] == "put":  # its bytes follow
                    received = supervisor.inputs.receive(reader, frame["name"], frame["size"])
                    frame["error"] = await received
                frames.put_nowait(frame)

    tasks = [asyncio.create_task(handle_all()), asyncio.create_task(read_all())]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


def supervise(
    channel_in: int, channel_out: int, control: socket.socket, pid: int, config: Config
) -> NoReturn:
    """Serve until the channel closes, the maximum lifetime is over, or an error occurs."""
    code = 0

    async def bounded(serving: Coroutine[Any, Any, None]) -> None:
        async with asyncio.timeout(config.max_lifetime_s):
            await serving

    try:
        asyncio.run(bounded(_serve(channel_in, channel_out, control, pid, config)))
    except (asyncio.IncompleteReadError, TimeoutError, ConnectionError):
        pass  # the owner has disconnected, or the lifetime is over
    except BaseException as error:
        code = 1
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        with contextlib.suppress(OSError):
            send_frame(channel_out, {"op": "fatal", "reason": f"{type(error).__name__}: {error}"})
    os._exit(code)
