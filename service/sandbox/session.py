"""A session on a worker of a pool."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

from service.sandbox.base import (
    CANCELLED,
    MAX_LIVE_BYTES,
    ExecutionResult,
    OnOutput,
    SandboxError,
    SessionLimits,
)
from service.sandbox.pool import Pool
from service.sandbox.tool_calls import ToolCalls
from service.sandbox.worker_protocol import (
    MAX_CODE_BYTES,
    OutputFrame,
    Reply,
    Result,
    SandboxWorker,
    Settled,
    Suspended,
    ToolCallFrame,
    ToolHeld,
)
from service.tools.base import ToolHost

_SUSPEND_WITHIN_S: Final = 10.0
"""Time within which a worker must stop its code."""


class PooledSession:
    """A session on its own worker, leased at the first ``invoke``."""

    def __init__(
        self, pool: Pool, limits: SessionLimits, grace_s: float, tools: ToolHost | None = None
    ) -> None:
        self._pool = pool
        self._grace_s = grace_s
        self._tools = tools
        self._channel: ToolChannel | None = None
        """Reads the worker's frames if the session has, or had, tools."""
        self._sending = asyncio.Lock()
        """Held while an input is sent, whose parts nothing may separate."""
        self._limits = limits
        self._worker: SandboxWorker | None = None
        self._reusable = True
        """The worker may be reset for another session."""
        self._pending_bytes = 0
        self._pending_blocks = 0
        self._failure: str | None = None
        """Reason why the pending blocks can't run. Reported once, by the flush."""
        self._closed = False
        self._lock = asyncio.Lock()
        self._announced = False
        self._settling: asyncio.Task[Result | SandboxError | None] | None = None
        """Reads the frame that follows a result, and then freezes the worker."""
        self._deadline = Deadline()
        """Time by which the worker must answer a flush."""

    async def prepare(self) -> None:
        if self._worker is None and not self._announced and not self._closed:
            self._announced = True
            self._pool.expect()

    def _withdraw(self) -> None:
        """Withdraw the announcement: the session leases its worker now or never will."""
        if self._announced:
            self._announced = False
            self._pool.unexpect()

    async def invoke(self, code: str) -> None:
        async with self._lock:
            if self._closed:
                raise SandboxError("the session is closed")
            self._pending_blocks += 1
            self._pending_bytes += len(code.encode("utf-8", "surrogatepass")) + 1
            if self._failure is not None or self._pending_bytes > MAX_CODE_BYTES:
                return
            try:
                worker = self._worker or await self._lease()
                await worker.send({"op": "invoke", "code": code})
            except SandboxError as error:
                if self._worker is None:
                    self._pending_blocks, self._pending_bytes = 0, 0
                    raise  # nothing was leased, so the session is unchanged
                self._fail(str(error))
            except asyncio.CancelledError:
                if self._worker is None:
                    self._pending_blocks, self._pending_bytes = 0, 0
                else:
                    self._cancelled()
                raise

    async def _lease(self) -> SandboxWorker:
        self._withdraw()
        worker = await self._pool.lease()
        if self._closed:  # in the meantime
            self._pool.discard(worker)
            raise SandboxError("the session is closed")
        self._worker = worker
        await self._open(self._worker)
        return self._worker

    async def _open(self, worker: SandboxWorker) -> None:
        """Send the limits and tools of the following flushes."""
        limits = self._limits
        frame: dict[str, Any] = {"op": "open", "run_limit_s": limits.run_limit_s, "eager": limits.eager}
        if limits.figures is not None:
            frame["figures"] = limits.figures
        if worker.freezable:
            frame["report_settled"] = True
        calls: ToolCalls | None = None
        if self._tools is not None:
            calls = ToolCalls(self._tools, limits, self._send_result)
            frame |= calls.open_fields()
        if self._channel is not None:
            self._channel.use(calls)
        elif calls is not None:
            self._channel = ToolChannel(worker, calls)
        await worker.send(frame)

    async def _send_result(self, message: dict[str, Any]) -> None:
        """Send the result of a call, but not in the middle of an input."""
        async with self._sending:
            if self._worker is not None:
                await self._worker.send(message)

    @property
    def _answer_within_s(self) -> float:
        """Time within which the worker must answer a flush, in seconds."""
        wait_s = 0.0 if self._tools is None else self._limits.tool_wait_s
        return self._limits.run_limit_s + wait_s + self._grace_s

    async def flush(self, on_output: OnOutput | None = None) -> ExecutionResult:
        async with self._lock:
            began = time.monotonic()
            blocks, size = self._pending_blocks, self._pending_bytes
            self._pending_blocks, self._pending_bytes = 0, 0
            if not blocks:
                return _nothing_ran("ok", "", 0.0)
            if size > MAX_CODE_BYTES:
                self._drop_worker(None)  # it holds the first blocks of a script that never runs
                return _nothing_ran(
                    "error", f"MemoryError: the code is larger than {MAX_CODE_BYTES} bytes", 0.0, exit_code=1
                )
            container = None if self._worker is None else self._worker.name
            result: Result | None = None
            if self._failure is None:
                result = await self._result(on_output)
            if result is None:
                reason, self._failure = self._failure or "", None
                nothing = _nothing_ran("sandbox_error", reason, time.monotonic() - began)
                return replace(nothing, container=container)
            if result.status in ("timeout", "oom", "output_limit"):
                self._pool.count_kill(result.status)
            return replace(result.execution_result(time.monotonic() - began), container=container)

    async def _result(self, on_output: OnOutput | None) -> Result | None:
        """Return the supervisor's result, or None and drop the worker if there is no valid one."""
        assert self._worker is not None  # noqa: S101  blocks are pending, so a worker was leased
        try:
            async with self._deadline.within(self._answer_within_s):
                if self._channel is not None:
                    self._channel.begin_flush()
                settling, self._settling = self._settling, None
                if settling is not None and settling.done() and isinstance(settling.result(), Result):
                    raise SandboxError("the worker sent a result before the flush")
                live: dict[str, Any] = {} if on_output is None else {"live_output": True}
                await self._worker.send({"op": "flush", **live})
                frame = await self._receive(self._worker, settling)
                output = LiveOutputLimit(on_output)
                while isinstance(frame, OutputFrame):
                    output.pass_on(frame)
                    frame = await (self._channel or self._worker).receive()
        except TimeoutError:
            self._fail("the worker did not answer in time")
        except SandboxError as error:
            self._fail(str(error))
        except asyncio.CancelledError:
            self._cancelled()
            raise
        else:
            if isinstance(frame, Result):
                if self._channel is not None:
                    self._channel.end_flush()
                if self._worker.freezable:
                    self._settling = asyncio.create_task(
                        self._settle(self._worker, self._channel or self._worker)
                    )
                return frame
            self._fail(f"the worker replied {frame.op!r} to a flush")
        return None

    async def _receive(
        self, worker: SandboxWorker, settling: asyncio.Task[Result | SandboxError | None] | None
    ) -> Reply:
        """Receive the frame after that of ``settling``, which reads from the same channel."""
        if (result := await self._settled(settling)) is not None:
            worker.freezing_failed(
                "the sandbox image does not report settled sessions; rebuild it: ih-grpo sandbox build"
            )
            return result
        return await (self._channel or worker).receive()

    async def _settled(self, settling: asyncio.Task[Result | SandboxError | None] | None) -> Result | None:
        """Wait for ``settling``, and return the result that it has received instead; see ``_settle``.

        Raises:
            SandboxError: the worker failed.
        """
        received = None if settling is None else await settling
        if isinstance(received, SandboxError):
            raise received
        return received

    async def _settle(
        self, worker: SandboxWorker, source: SandboxWorker | ToolChannel
    ) -> Result | SandboxError | None:
        """Freeze the worker once its supervisor is done with the flush, unless new blocks are pending.

        Args:
            worker: to freeze.
            source: reads its frames.

        Returns:
            The error if the worker failed, for the next flush. The result of the next flush if the worker
            program is of an older version, which does not send ``Settled``.
        """
        try:
            frame = await source.receive()
        except SandboxError as error:
            return error
        if isinstance(frame, Result):
            return frame
        if not isinstance(frame, Settled):
            return SandboxError(f"the worker sent {frame.op!r} instead of 'settled'")
        if not self._pending_blocks and not self._lock.locked():
            worker.freeze()  # the next ``send`` ends it
        return None

    async def suspend(self) -> None:
        channel, worker = self._channel, self._worker
        if channel is None or worker is None or not self._deadline.is_running:
            return
        self._deadline.suspend()
        with contextlib.suppress(SandboxError, TimeoutError):
            await self._send_result({"op": "suspend"})
            async with asyncio.timeout(_SUSPEND_WITHIN_S):
                await channel.suspended.wait()
            if self._deadline.is_running:  # else the flush has ended
                worker.freeze()

    async def resume(self) -> None:
        self._deadline.resume()
        if self._channel is not None:
            self._channel.suspended.clear()
            with contextlib.suppress(SandboxError):
                await self._send_result({"op": "resume"})

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self._drop_worker("sandbox_error")

    def _cancelled(self) -> None:
        """Drop the worker, whose state is unknown. The next flush reports that the variables are lost."""
        self._failure = CANCELLED
        self._drop_worker("cancelled")

    def _drop_worker(self, reason: str | None) -> None:
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._worker is not None:
            self._pool.discard(self._worker, reason)
            self._worker = None

    async def close(self) -> None:
        self._closed = True
        self._withdraw()
        worker, idle = self._worker, self._failure is None and not self._lock.locked()
        reusable = idle and self._reusable and self._channel is None
        if worker is not None and reusable and self._pool.reuses(worker):
            settling, self._worker, self._settling = self._settling, None, None
            self._pool.recycle(worker, self._settled(settling))
        else:
            self._drop_worker(None)


class Deadline:
    """The time limit of a flush, which stops while the flush is suspended."""

    def __init__(self) -> None:
        self._timeout: asyncio.Timeout | None = None
        self._left: float | None = None

    @property
    def is_running(self) -> bool:
        """Whether a flush is in progress."""
        return self._timeout is not None and not self._timeout.expired()

    @asynccontextmanager
    async def within(self, seconds: float) -> AsyncGenerator[None, None]:
        """Limit the time inside. Raises TimeoutError at the limit."""
        try:
            async with asyncio.timeout(seconds) as self._timeout:
                yield
        finally:
            self._timeout = self._left = None

    def suspend(self) -> None:
        """Stop the time."""
        if self._timeout is not None and (at := self._timeout.when()) is not None and self.is_running:
            self._left = at - asyncio.get_running_loop().time()
            self._timeout.reschedule(None)

    def resume(self) -> None:
        """Undo ``suspend``."""
        if self._timeout is not None and self._left is not None:
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._left)
            self._left = None


class LiveOutputLimit:
    """Passes on the live output of one flush. The worker is not trusted to keep its limit."""

    def __init__(self, on_output: OnOutput | None) -> None:
        self._on_output = on_output
        self._frames_left = self._bytes_left = 2 * MAX_LIVE_BYTES  # a flush may run twice

    def pass_on(self, frame: OutputFrame) -> None:
        """Raise SandboxError if the frame was not requested, or exceeds the limit."""
        if self._on_output is None:
            raise SandboxError("the worker sent output that was not requested")
        self._frames_left -= 1
        self._bytes_left -= len(frame.text.encode())
        if self._frames_left < 0 or self._bytes_left < 0:
            raise SandboxError("the worker sent more live output than its limit")
        self._on_output(frame.chunk())


class ToolChannel:
    """Reads a worker's frames from its lease on: tools may be called at any time before the flush."""

    def __init__(self, worker: SandboxWorker, calls: ToolCalls | None) -> None:
        self._calls = calls
        self._worker = worker
        self._frames: asyncio.Queue[Reply | SandboxError] = asyncio.Queue()
        self.suspended = asyncio.Event()
        """The worker has stopped the code."""
        self._task = asyncio.create_task(self._read())

    def use(self, calls: ToolCalls | None) -> None:
        """Replace the tools; None for none. No block may be pending."""
        if self._calls is not None:
            self._calls.close()
        self._calls = calls

    async def _read(self) -> None:
        try:
            while True:
                frame = await self._worker.receive()
                if isinstance(frame, Suspended):
                    self.suspended.set()
                elif isinstance(frame, ToolHeld) and self._calls is not None:
                    self._calls.announce(frame)
                elif not isinstance(frame, ToolCallFrame):
                    self._frames.put_nowait(frame)
                elif self._calls is None:
                    raise SandboxError("the worker passed on a call of a tool, but there are no tools")
                else:
                    self._calls.begin(frame)
        except SandboxError as error:
            self._frames.put_nowait(error)
            self._worker.close()  # a worker that breaks the protocol must not run on

    async def receive(self) -> Reply:
        """Return the next frame that is not a call of a tool.

        Raises:
            SandboxError: the worker is gone or broke the protocol.
        """
        frame = await self._frames.get()
        if isinstance(frame, SandboxError):
            raise frame
        return frame

    def begin_flush(self) -> None:
        """Allow calls with side effects."""
        if self._calls is not None:
            self._calls.flushing = True

    def end_flush(self) -> None:
        """Forget the calls of blocks that have run or were dropped."""
        if self._calls is not None:
            self._calls.end_flush()

    def close(self) -> None:
        self._task.cancel()
        if self._calls is not None:
            self._calls.close()


def _nothing_ran(
    status: str, stderr: str, waited_seconds: float, exit_code: int | None = None
) -> ExecutionResult:
    return ExecutionResult(
        stdout="",
        stderr=stderr,
        status=status,  # type: ignore[arg-type]
        wall_seconds=0.0,
        waited_seconds=waited_seconds,
        exit_code=exit_code,
    )
