"""A session on a worker of a pool."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

from service.sandbox.base import ExecutionResult, SandboxError, SessionLimits
from service.sandbox.pool import Pool
from service.sandbox.worker_protocol import MAX_CODE_BYTES, Result, SandboxWorker


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
                self._drop_worker("cancelled")
                raise

    async def _lease(self) -> SandboxWorker:
        self._withdraw()
        self._worker = await self._pool.lease()
        await self._worker.send(self._open_frame())
        return self._worker

    def _open_frame(self) -> dict[str, Any]:
        limits = self._limits
        files = {} if limits.figures is None else {"figures": limits.figures}
        return {"op": "open", "run_limit_s": limits.run_limit_s, "eager": limits.eager, **files}

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
                await self._worker.send({"op": "flush"})
                frame = await self._worker.receive()
        except TimeoutError:
            self._fail("the worker did not answer in time")
        except SandboxError as error:
            self._fail(str(error))
        except asyncio.CancelledError:
            self._drop_worker("cancelled")
            raise
        else:
            if isinstance(frame, Result):
                return frame
            self._fail(f"the worker replied {frame.op!r} to a flush")
        return None

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self._drop_worker("sandbox_error")

    def _drop_worker(self, reason: str | None) -> None:
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
