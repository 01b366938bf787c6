"""A warm pool of single-use workers: leased once, destroyed afterwards, replaced in the background.

How many workers are kept idle follows demand. On top of ``size`` there is one for each session that announced
blocks (``expect``), and as many as are leased, at the present rate, while one starts; never more than
``_GROWTH`` times ``size`` for the rate, and never more than ``maximum`` alive. What the rate alone asks for
is started one at a time: where starts are slow because the machine is busy, more of them must not make it
busier. Surplus workers are destroyed once demand has been lower for ``_SHRINK_S``.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import structlog

from service.sandbox.base import QueueTimeoutError, SandboxError
from service.sandbox.worker_protocol import Worker

log = structlog.get_logger(__name__)

_LONGEST_PAUSE_S = 30.0
_GROWTH: Final = 2
"""How many times ``size`` the arrival rate may raise the number of idle workers to."""
_RATE_LEASES: Final = 8
_RATE_WINDOW_S: Final = 60.0
"""The arrival rate is that of the last few leases, if they are not older than this."""
_SHRINK_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Counters since start; ``idle``, ``leased``, ``starting`` and ``waiting`` are the present."""

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
    """Workers or scripts killed, by reason: timeout, oom, output_limit, sandbox_error, cancelled."""
    orphans_reaped: int
    expected: int = 0
    """Sessions that announced blocks and have not sent one yet."""
    target: int = 0
    """Idle workers that the pool aims at now."""


class Pool:
    """Keeps at least ``size`` workers idle, at most ``maximum`` alive; starts ``concurrency`` at once."""

    def __init__(
        self,
        create: Callable[[], Awaitable[Worker]],
        *,
        size: int,
        maximum: int,
        concurrency: int,
        queue_timeout_s: float,
    ) -> None:
        self._create = create
        self._size, self._maximum, self._concurrency = size, maximum, concurrency
        self._queue_timeout_s = queue_timeout_s
        self._idle: deque[tuple[Worker, asyncio.Task[None]]] = deque()
        self._waiters: deque[asyncio.Future[Worker]] = deque()
        self._leased: set[Worker] = set()
        self._dying = 0
        self._starting = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failures_in_row = 0
        self._last_error: SandboxError | None = None
        self._stopped = True
        self._expected = 0
        self._lease_times: deque[float] = deque(maxlen=_RATE_LEASES)
        self._start_seconds = 0.0
        """How long the last starts took, smoothed."""
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
        worker = await self._timed_create()  # in the foreground: an error of the first one is that of all
        self._counts["started"] += 1
        self._offer(worker)
        self._balance()

    async def lease(self) -> Worker:
        """A worker for one session.

        Raises:
            QueueTimeoutError: all workers stayed leased for the queue timeout.
            SandboxError: none could be started in that time.
        """
        if self._stopped:
            raise SandboxError("the sandbox is stopped")
        began = asyncio.get_running_loop().time()
        self._lease_times.append(began)
        if self._idle:
            worker, watcher = self._idle.popleft()
            self._leased.add(worker)
            watcher.cancel()
            await asyncio.wait([watcher])  # only one may read from a channel
        else:
            worker = await self._wait()
        self._counts["leases"] += 1
        self._lease_wait += asyncio.get_running_loop().time() - began
        self._balance()
        return worker

    async def _wait(self) -> Worker:
        waiter: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._balance()
        try:
            async with asyncio.timeout(self._queue_timeout_s):
                return await waiter
        except TimeoutError as error:
            self._counts["queue_timeouts"] += 1
            if self._last_error is not None:
                raise SandboxError(f"no worker could be started: {self._last_error}") from self._last_error
            raise QueueTimeoutError(
                f"no sandbox came free in {self._queue_timeout_s:g} s: all {self._maximum} are in use"
            ) from error
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif waiter.done() and not waiter.cancelled() and asyncio.current_task() is not None:
                self._give_back_unclaimed(waiter)

    def _give_back_unclaimed(self, waiter: asyncio.Future[Worker]) -> None:
        """A worker that was handed over while its waiter was being cancelled goes to the next one."""
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            worker = waiter.result()
            self._leased.discard(worker)
            self._offer(worker)

    async def release(self, worker: Worker, reason: str | None = None) -> None:
        """Destroy a leased worker. ``reason`` counts it as killed. Returns once nothing is left of it."""
        if worker not in self._leased:
            return
        self._leased.discard(worker)
        if reason is not None:
            self._kills[reason] += 1
        await self._destroy(worker)

    def discard(self, worker: Worker, reason: str | None = None) -> None:
        """As ``release``, without waiting: its channel is closed now, the rest happens in the background."""
        worker.close()
        self._spawn(self.release(worker, reason))

    def expect(self) -> None:
        """Keep one more worker idle, for a session that will probably lease one. Undone by ``unexpect``."""
        self._expected += 1
        self._balance()

    def unexpect(self) -> None:
        """Undo one ``expect``: the session leases its worker now, or never will."""
        self._expected -= 1
        self._balance()

    @property
    def target(self) -> int:
        """Idle workers to aim at, by the pool's size and the present demand."""
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
        """Could a session be served soon?"""
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
        )

    async def stop(self) -> None:
        """Destroy every worker and wait until that is done."""
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

    async def _destroy(self, worker: Worker) -> None:
        self._dying += 1
        try:
            await worker.destroy()
        finally:
            self._dying -= 1
            self._counts["destroyed"] += 1
            self._balance()

    def _balance(self) -> None:
        """Start what is missing, within the bounds."""
        if self._stopped:
            return
        alive = len(self._idle) + len(self._leased) + self._dying + self._starting
        target = self.target
        missing = target + len(self._waiters) - len(self._idle) - self._starting
        room = min(self._maximum - alive, self._concurrency - self._starting, missing)
        urgent = self._size + self._expected + len(self._waiters) - len(self._idle) - self._starting
        one_at_a_time = 1 - self._starting
        room = min(room, max(urgent, one_at_a_time))
        if self._failures_in_row:
            room = min(room, one_at_a_time)  # until one works
        for _ in range(room):
            self._starting += 1
            self._spawn(self._start_one())
        if len(self._idle) > self._size and self._shrinking is None:
            self._shrinking = asyncio.get_running_loop().call_later(_SHRINK_S, self._shrink)

    def _shrink(self) -> None:
        """Destroy the idle workers that demand no longer asks for."""
        self._shrinking = None
        for _ in range(len(self._idle) - self.target):
            worker, watcher = self._idle.popleft()
            watcher.cancel()
            self._spawn(self._destroy(worker))
        self._balance()  # which looks again later, while there are more than ``size``

    async def _timed_create(self) -> Worker:
        began = self._now()
        worker = await self._create()
        took = self._now() - began
        self._start_seconds = (self._start_seconds + took) / 2 if self._start_seconds else took
        return worker

    async def _start_one(self) -> None:
        try:
            if self._failures_in_row:
                await asyncio.sleep(min(0.5 * 2**self._failures_in_row, _LONGEST_PAUSE_S))
            if self._stopped:
                return
            worker = await self._timed_create()
        except SandboxError as error:
            self._counts["start_failures"] += 1
            self._failures_in_row += 1
            self._last_error = error
            log.warning("sandbox_start_failed", error=str(error), failures_in_row=self._failures_in_row)
        else:
            self._counts["started"] += 1
            self._failures_in_row, self._last_error = 0, None
            if self._stopped:
                await worker.destroy()
            else:
                self._offer(worker)
        finally:
            self._starting -= 1
            self._balance()

    def _offer(self, worker: Worker) -> None:
        """To the one who waits longest, else to the idle ones."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._leased.add(worker)
                waiter.set_result(worker)
                return
        self._idle.append((worker, self._spawn(self._watch(worker))))

    async def _watch(self, worker: Worker) -> None:
        """An idle worker says nothing: whatever comes, its end above all, makes it useless."""
        with contextlib.suppress(SandboxError):
            await worker.receive()
        self._idle = deque(entry for entry in self._idle if entry[0] is not worker)
        log.warning("sandbox_lost_while_idle", worker=worker.name)
        await self._destroy(worker)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
