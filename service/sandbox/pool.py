"""A warm pool of workers: each is leased once, then destroyed and replaced in the background.

Only a pool with ``reuse_for_s`` leases workers again, after a reset. It keeps all workers until that age.

The number of idle workers follows demand. Beyond ``size`` the pool keeps one worker per session that
announced blocks (``expect``), and as many as are leased, at the present rate, while a new one starts. The
rate raises the number to at most ``_GROWTH`` times ``size``, and no more than ``maximum`` workers exist.
Workers that only the rate requires are started one at a time: on a busy machine starts are slow, and more of
them immediately would make it busier. Surplus workers are destroyed after demand has been lower for
``_SHRINK_S``.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import structlog

from service.sandbox.base import QueueTimeoutError, SandboxError
from service.sandbox.worker_protocol import Done, SandboxWorker

log = structlog.get_logger(__name__)

_MAX_RETRY_PAUSE_S = 30.0
_GROWTH: Final = 2
"""Highest number of idle workers that the arrival rate may require, as a multiple of ``size``."""
_RATE_LEASES: Final = 8
_RATE_WINDOW_S: Final = 60.0
"""The arrival rate is measured over the last ``_RATE_LEASES`` leases that are not older than this."""
_SHRINK_S: Final = 30.0
_RESET_WITHIN_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Counters since the start, except ``idle``, ``leased``, ``starting``, ``waiting``, which are current."""

    idle: int
    leased: int
    starting: int
    waiting: int
    started: int
    destroyed: int
    start_failures: int
    queue_timeouts: int
    lease_wait_seconds: float
    """Sum over all leases."""
    leases: int
    kills: dict[str, int]
    """Killed workers or scripts by reason: timeout, oom, output_limit, sandbox_error, cancelled."""
    orphans_reaped: int
    expected: int = 0
    """Sessions that announced blocks and have not sent one yet."""
    target: int = 0
    """Number of idle workers that the pool currently aims for."""
    reused: int = 0
    """Leased workers that were reset for another lease."""


class Pool:
    """A pool that keeps at least ``size`` workers idle.

    At most ``maximum`` workers exist, and at most ``concurrency`` start at the same time. Workers are reused
    until the age of ``reuse_for_s``, and idle ones are replaced at the age of ``idle_for_s``.
    """

    def __init__(
        self,
        create: Callable[[], Awaitable[SandboxWorker]],
        *,
        size: int,
        maximum: int,
        concurrency: int,
        queue_timeout_s: float,
        reuse_for_s: float = 0.0,
        idle_for_s: float = math.inf,
    ) -> None:
        self._create = create
        self._reuse_for_s, self._idle_for_s = reuse_for_s, idle_for_s
        self._size, self._maximum, self._concurrency = size, maximum, concurrency
        self._queue_timeout_s = queue_timeout_s
        self._idle: deque[tuple[SandboxWorker, asyncio.Task[None]]] = deque()
        self._waiters: deque[asyncio.Future[SandboxWorker]] = deque()
        self._leased: set[SandboxWorker] = set()
        self._destroying = 0
        self._starting = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failures_in_row = 0
        self._last_error: Exception | None = None
        self._stopped = True
        self._expected = 0
        self._lease_times: deque[float] = deque(maxlen=_RATE_LEASES)
        self._start_seconds = 0.0
        """Smoothed duration of a start, in seconds."""
        self._shrinking: asyncio.TimerHandle | None = None
        self._counts: Counter[str] = Counter()
        self._kills: Counter[str] = Counter()
        self._lease_wait = 0.0
        self.orphans_reaped = 0

    async def start(self) -> None:
        """Fill the pool.

        Raises:
            SandboxError: the first worker could not be started.
        """
        self._stopped = False
        worker = await self._timed_create()  # awaited: an error of the first start is reported
        self._counts["started"] += 1
        self._assign(worker)
        self._balance()

    async def lease(self) -> SandboxWorker:
        """Lease a worker for one session, waiting for one if necessary.

        Raises:
            QueueTimeoutError: all workers stayed leased for the queue timeout.
            SandboxError: no worker could be started in that time, or the pool is stopped.
        """
        if self._stopped:
            raise SandboxError("the sandbox is stopped")
        began = asyncio.get_running_loop().time()
        self._lease_times.append(began)
        if self._idle:
            worker, watcher = self._idle.popleft()
            self._leased.add(worker)
            watcher.cancel()
            try:
                await asyncio.wait([watcher])  # a channel has one reader at a time
            except BaseException:
                self.discard(worker, "cancelled")
                raise
        else:
            worker = await self._wait()
        self._counts["leases"] += 1
        self._lease_wait += asyncio.get_running_loop().time() - began
        self._balance()
        return worker

    async def _wait(self) -> SandboxWorker:
        waiter: asyncio.Future[SandboxWorker] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._balance()
        try:
            async with asyncio.timeout(self._queue_timeout_s):
                return await waiter
        except TimeoutError as error:
            if (worker := _assigned(waiter)) is not None:
                return worker  # at the last moment
            self._counts["queue_timeouts"] += 1
            if self._last_error is not None:
                raise SandboxError(f"no worker could be started: {self._last_error}") from self._last_error
            raise QueueTimeoutError(
                f"no sandbox became free within {self._queue_timeout_s:g} s: all {self._maximum} are in use"
            ) from error
        except BaseException:
            if (worker := _assigned(waiter)) is not None:  # while this lease was being cancelled
                self._leased.discard(worker)
                self._assign(worker)
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    async def release(self, worker: SandboxWorker, reason: str | None = None) -> None:
        """Destroy a leased worker and wait until it is gone. ``reason`` counts it as killed."""
        if worker not in self._leased:
            return
        self._leased.discard(worker)
        if reason is not None:
            self._kills[reason] += 1
        await self._destroy(worker)

    def discard(self, worker: SandboxWorker, reason: str | None = None) -> None:
        """Like ``release``, but only close the channel now and destroy the worker in the background."""
        worker.close()
        self._spawn(self.release(worker, reason))

    def reuses(self, worker: SandboxWorker) -> bool:
        """Return whether ``recycle`` may be called for a worker at the end of its session."""
        return not self._stopped and time.monotonic() < worker.created_at + self._reuse_for_s

    def recycle(self, worker: SandboxWorker, settled: Awaitable[object]) -> None:
        """Reset a leased worker in the background and make it idle; destroy it if that fails.

        Args:
            worker: no flush of it is running.
            settled: returns None when the worker has no more frames to send. Otherwise the worker has failed.
        """
        self._spawn(self._recycle(worker, settled))

    async def _recycle(self, worker: SandboxWorker, settled: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(_RESET_WITHIN_S):
                if await settled is not None:
                    raise SandboxError("the worker sent an unexpected frame after its last flush")
                await worker.send({"op": "reset"})
                reply = await worker.receive()
                if not isinstance(reply, Done):
                    raise SandboxError(f"the worker replied {reply.op!r} to a reset")
        except (SandboxError, TimeoutError) as error:
            if not self._stopped:
                log.warning("sandbox_not_reset", worker=worker.name, error=str(error))
            await self.release(worker, "sandbox_error")
            return
        if worker not in self._leased:
            return  # the pool was stopped
        self._leased.discard(worker)
        self._counts["reused"] += 1
        self._assign(worker)
        self._balance()

    def expect(self) -> None:
        """Keep one more worker idle for a session that will probably lease one. Undone by ``unexpect``."""
        self._expected += 1
        self._balance()

    def unexpect(self) -> None:
        """Undo one ``expect``: the session leases its worker now or never will."""
        self._expected -= 1
        self._balance()

    @property
    def target(self) -> int:
        """Number of idle workers to aim for, from the pool's size and the present demand."""
        recent = [at for at in self._lease_times if at > self._now() - _RATE_WINDOW_S]
        wanted = self._size
        if len(recent) > 1:
            elapsed = max(self._now() - recent[0], self._start_seconds)
            in_a_start = math.ceil((len(recent) - 1) / elapsed * self._start_seconds) if elapsed else 0
            wanted = min(self._size + in_a_start, _GROWTH * self._size)
        return min(wanted + self._expected, self._maximum)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def count_kill(self, reason: str) -> None:
        self._kills[reason] += 1

    @property
    def healthy(self) -> bool:
        """Whether a new session would be served soon."""
        return not self._stopped and (bool(self._idle) or bool(self._leased) or self._last_error is None)

    def stats(self) -> PoolStats:
        counts = self._counts
        return PoolStats(
            idle=len(self._idle),
            leased=len(self._leased),
            starting=self._starting,
            waiting=len(self._waiters),
            started=counts["started"],
            destroyed=counts["destroyed"],
            start_failures=counts["start_failures"],
            queue_timeouts=counts["queue_timeouts"],
            lease_wait_seconds=self._lease_wait,
            leases=counts["leases"],
            kills=dict(self._kills),
            orphans_reaped=self.orphans_reaped,
            expected=self._expected,
            target=0 if self._stopped else self.target,
            reused=counts["reused"],
        )

    async def stop(self) -> None:
        """Destroy all workers and wait until they are gone."""
        self._stopped = True
        if self._shrinking is not None:
            self._shrinking.cancel()
            self._shrinking = None
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(SandboxError("the sandbox is stopped"))
        for _, watcher in self._idle:
            watcher.cancel()
        workers = [worker for worker, _ in self._idle]
        self._idle.clear()
        doomed = [*workers, *self._leased]
        self._leased.clear()
        await asyncio.gather(*(self._destroy(worker) for worker in doomed))
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _destroy(self, worker: SandboxWorker) -> None:
        self._destroying += 1
        try:
            await worker.destroy()
        finally:
            self._destroying -= 1
            self._counts["destroyed"] += 1
            self._balance()

    def _balance(self) -> None:
        """Start missing workers, within the bounds."""
        if self._stopped:
            return
        alive = len(self._idle) + len(self._leased) + self._destroying + self._starting
        target = self.target
        missing = target + len(self._waiters) - len(self._idle) - self._starting
        room = min(self._maximum - alive, self._concurrency - self._starting, missing)
        urgent = self._size + self._expected + len(self._waiters) - len(self._idle) - self._starting
        one_at_a_time = 1 - self._starting
        room = min(room, max(urgent, one_at_a_time))
        if self._failures_in_row:
            room = min(room, one_at_a_time)  # until one start succeeds
        for _ in range(room):
            self._starting += 1
            self._spawn(self._start_one())
        if len(self._idle) > self._size and self._shrinking is None and not self._reuse_for_s:
            self._shrinking = asyncio.get_running_loop().call_later(_SHRINK_S, self._shrink)

    def _shrink(self) -> None:
        """Destroy the idle workers that demand no longer requires."""
        self._shrinking = None
        for _ in range(len(self._idle) - self.target):
            worker, watcher = self._idle.popleft()
            watcher.cancel()
            self._spawn(self._destroy(worker))
        self._balance()  # schedules the next check while there are more than ``size``

    async def _timed_create(self) -> SandboxWorker:
        began = self._now()
        worker = await self._create()
        took = self._now() - began
        self._start_seconds = (self._start_seconds + took) / 2 if self._start_seconds else took
        return worker

    async def _start_one(self) -> None:
        try:
            if self._failures_in_row:
                await asyncio.sleep(min(0.5 * 2**self._failures_in_row, _MAX_RETRY_PAUSE_S))
            if self._stopped:
                return
            worker = await self._timed_create()
        except Exception as error:
            expected = isinstance(error, SandboxError)
            self._counts["start_failures"] += 1
            self._failures_in_row += 1
            self._last_error = error
            log.warning(
                "sandbox_start_failed",
                error=str(error) or type(error).__name__,
                failures_in_row=self._failures_in_row,
                exc_info=not expected,
            )
        else:
            self._counts["started"] += 1
            self._failures_in_row, self._last_error = 0, None
            if self._stopped:
                await worker.destroy()
            else:
                self._assign(worker)
        finally:
            self._starting -= 1
            self._balance()

    def _assign(self, worker: SandboxWorker) -> None:
        """Give the worker to the longest waiting lease, or add it to the idle ones."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._leased.add(worker)
                waiter.set_result(worker)
                return
        self._idle.append((worker, self._spawn(self._watch(worker))))

    async def _watch(self, worker: SandboxWorker) -> None:
        """Replace an idle worker that sends a frame, ends or gets old: an idle worker sends nothing."""
        left_s = worker.created_at + self._idle_for_s - time.monotonic()
        try:
            async with asyncio.timeout(None if math.isinf(left_s) else left_s):
                with contextlib.suppress(SandboxError):
                    await worker.receive()
        except TimeoutError:
            pass
        else:
            log.warning("sandbox_lost_while_idle", worker=worker.name)
        self._idle = deque(entry for entry in self._idle if entry[0] is not worker)
        await self._destroy(worker)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _assigned(waiter: asyncio.Future[SandboxWorker]) -> SandboxWorker | None:
    """Return the worker that a lease was given, if any."""
    has_worker = waiter.done() and not waiter.cancelled() and waiter.exception() is None
    return waiter.result() if has_worker else None
