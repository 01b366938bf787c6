"""Sandbox with a pool of workers, the base of the Docker and bubblewrap sandboxes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from service.sandbox.base import ExecutionResult, SandboxError, Session, SessionLimits
from service.sandbox.isolation_checks import IsolationCheck, check_isolation
from service.sandbox.pool import Pool, PoolStats
from service.sandbox.settings import PoolSettings
from service.sandbox.worker_protocol import MAX_CODE_BYTES, Ready, Result, SandboxWorker, Settled


class PooledSession:
    """A session on its own worker, leased at the first ``invoke``."""

    def __init__(self, pool: Pool, limits: SessionLimits, grace_s: float) -> None:
        self._pool = pool
        self._answer_within_s = limits.run_limit_s + grace_s
        self._limits = limits
        self._worker: SandboxWorker | None = None
        self._pending_bytes = 0
        self._pending_blocks = 0
        self._failure: str | None = None
        """Reason why the pending blocks can't run. Reported once, by the flush."""
        self._closed = False
        self._lock = asyncio.Lock()
        self._announced = False
        self._settling: asyncio.Task[Result | SandboxError | None] | None = None
        """Reads the frame that follows a result, and then freezes the worker."""

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
                if self._worker is None:
                    self._withdraw()
                    self._worker = await self._pool.lease()
                    await self._worker.send(self._opening(self._worker))
                await self._worker.send({"op": "invoke", "code": code})
            except SandboxError as error:
                if self._worker is None:
                    self._pending_blocks, self._pending_bytes = 0, 0
                    raise  # nothing was leased, so the session is unchanged
                self._fail(str(error))
            except asyncio.CancelledError:
                self._drop_worker("cancelled")
                raise

    def _opening(self, worker: SandboxWorker) -> dict[str, object]:
        frame = {"op": "open", "run_limit_s": self._limits.run_limit_s, "eager": self._limits.eager}
        return {**frame, "report_settled": True} if worker.freezable else frame

    async def flush(self) -> ExecutionResult:
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
                result = await self._result()
            if result is None:
                reason, self._failure = self._failure or "", None
                nothing = _nothing_ran("sandbox_error", reason, time.monotonic() - began)
                return replace(nothing, container=container)
            if result.status in ("timeout", "oom", "output_limit"):
                self._pool.count_kill(result.status)
            return replace(result.execution_result(time.monotonic() - began), container=container)

    async def _result(self) -> Result | None:
        """Return the supervisor's result, or None and drop the worker if there is no valid one."""
        assert self._worker is not None  # noqa: S101  blocks are pending, so a worker was leased
        try:
            async with asyncio.timeout(self._answer_within_s):
                settling, self._settling = self._settling, None
                if settling is not None and settling.done() and isinstance(settling.result(), Result):
                    raise SandboxError("the worker sent a result before the flush")
                await self._worker.send({"op": "flush"})
                frame = await self._receive(self._worker, settling)
        except TimeoutError:
            self._fail("the worker did not answer in time")
        except SandboxError as error:
            self._fail(str(error))
        except asyncio.CancelledError:
            self._drop_worker("cancelled")
            raise
        else:
            if isinstance(frame, Result):
                if self._worker.freezable:
                    self._settling = asyncio.create_task(self._settle(self._worker))
                return frame
            self._fail(f"the worker replied {frame.op!r} to a flush")
        return None

    async def _receive(
        self, worker: SandboxWorker, settling: asyncio.Task[Result | SandboxError | None] | None
    ) -> Ready | Result | Settled:
        """Receive the frame after that of ``settling``, which reads from the same channel."""
        if settling is not None:
            received = await settling
            if isinstance(received, SandboxError):
                raise received
            if received is not None:
                worker.freezing_failed(
                    "the sandbox image does not report settled sessions; rebuild it: ih-grpo sandbox build"
                )
                return received
        return await worker.receive()

    async def _settle(self, worker: SandboxWorker) -> Result | SandboxError | None:
        """Freeze the worker once its supervisor is done with the flush, unless new blocks are pending.

        Returns:
            The error if the worker failed, for the next flush. The result of the next flush if the worker
            program is of an older version, which does not send ``Settled``.
        """
        try:
            frame = await worker.receive()
        except SandboxError as error:
            return error
        if isinstance(frame, Result):
            return frame
        if not isinstance(frame, Settled):
            return SandboxError(f"the worker sent {frame.op!r} instead of 'settled'")
        if not self._pending_blocks and not self._lock.locked():
            worker.freeze()  # the next ``send`` ends it
        return None

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self._drop_worker("sandbox_error")

    def _drop_worker(self, reason: str | None) -> None:
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        if self._worker is not None:
            self._pool.discard(self._worker, reason)
            self._worker = None

    async def close(self) -> None:
        self._closed = True
        self._withdraw()
        self._drop_worker(None)


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


class PooledSandbox:
    """A ``Sandbox`` that gives each session its own worker, which no other session uses."""

    def __init__(
        self,
        settings: PoolSettings,
        create: Callable[[], Awaitable[SandboxWorker]],
        checks: Sequence[IsolationCheck],
    ) -> None:
        self._limits = settings
        self._checks = checks
        self._checked = False
        self._pool = Pool(
            create,
            size=settings.pool_size,
            maximum=settings.max_containers,
            concurrency=settings.start_concurrency,
            queue_timeout_s=settings.queue_timeout_s,
        )

    async def start(self) -> None:
        """Fill the pool and run the isolation checks in one of its workers.

        Raises:
            SandboxError: no worker can be started, or a check failed. All workers are removed again, and
                ``ready`` stays false.
        """
        try:
            await self._pool.start()
            await check_isolation(self.session, self._checks)
        except BaseException:
            await self.stop()
            raise
        self._checked = True

    def session(self, limits: SessionLimits) -> Session:
        clipped = min(limits.run_limit_s, self._limits.run_limit_ceiling_s)
        limits = SessionLimits(run_limit_s=clipped, eager=limits.eager)
        return PooledSession(self._pool, limits, self._limits.grace_s)

    async def ready(self) -> bool:
        """Return whether the isolation checks passed and sandboxes are available."""
        return self._checked and self._pool.healthy

    def stats(self) -> PoolStats:
        return self._pool.stats()

    async def stop(self) -> None:
        self._checked = False
        await self._pool.stop()
