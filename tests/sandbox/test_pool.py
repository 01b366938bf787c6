from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from service.sandbox.base import QueueTimeoutError, SandboxError
from service.sandbox.pool import Pool
from service.sandbox.worker_protocol import Done
from tests.support.fake_worker import Factory, FakeWorker, result
from tests.support.until import until


def pool_of(factory: Factory, **options: Any) -> Pool:
    return Pool(factory, **{"size": 2, "maximum": 4, "concurrency": 2, "queue_timeout_s": 0.2, **options})


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_start_fills_the_pool_and_stop_destroys_all_workers() -> None:
    factory = Factory()
    pool = pool_of(factory)
    await pool.start()
    await settled()
    assert (pool.stats().idle, pool.stats().started) == (2, 2)
    await pool.stop()
    assert [worker.destroyed for worker in factory.made] == [1, 1]
    assert pool.stats().idle == 0


async def test_never_leases_a_worker_twice() -> None:
    factory = Factory()
    pool = pool_of(factory)
    await pool.start()
    leased = []
    for _ in range(6):
        worker = await pool.lease()
        leased.append(worker)
        await pool.release(worker)
        await settled()
    assert len(set(leased)) == 6
    assert all(worker.destroyed == 1 for worker in factory.made if worker in leased)
    await pool.stop()


async def test_leases_a_worker_again_after_a_reset() -> None:
    factory = Factory()
    pool = pool_of(factory, size=1, maximum=1, reuse_for_s=100.0)
    await pool.start()
    worker: Any = await pool.lease()
    assert pool.reuses(worker)
    pool.recycle(worker, asyncio.sleep(0))
    waiting = asyncio.create_task(pool.lease())
    await settled()
    assert worker.sent == [{"op": "reset"}]
    assert not waiting.done()
    worker.answers.put_nowait(Done(op="done", error=None))
    assert await waiting is worker
    assert (pool.stats().reused, pool.stats().destroyed) == (1, 0)
    await pool.stop()


@pytest.mark.parametrize("answer", [SandboxError("fatal"), result()])
async def test_destroys_a_worker_that_was_not_reset(answer: Any) -> None:
    factory = Factory()
    pool = pool_of(factory, size=1, maximum=1, reuse_for_s=100.0)
    await pool.start()
    worker: Any = await pool.lease()
    pool.recycle(worker, asyncio.sleep(0))
    worker.answers.put_nowait(answer)
    await until(lambda: worker.destroyed == 1)
    assert await pool.lease() is not worker
    assert (pool.stats().reused, pool.stats().kills) == (0, {"sandbox_error": 1})
    await pool.stop()


async def test_destroys_a_worker_whose_last_flush_failed_late() -> None:
    factory = Factory()
    pool = pool_of(factory, reuse_for_s=100.0)
    await pool.start()
    worker: Any = await pool.lease()

    async def settle() -> None:
        raise SandboxError("fatal")

    pool.recycle(worker, settle())
    await until(lambda: worker.destroyed == 1)
    assert worker.sent == []
    await pool.stop()


async def test_reuses_no_old_workers_and_none_without_the_option() -> None:
    factory = Factory()
    for seconds, reuses in ((0.0, False), (50.0, False), (150.0, True)):
        pool = pool_of(factory, reuse_for_s=seconds)
        await pool.start()
        worker: Any = await pool.lease()
        worker.created_at -= 100.0
        assert pool.reuses(worker) == reuses
        await pool.stop()
        assert not pool.reuses(worker)


async def test_lease_times_out_when_the_maximum_is_leased() -> None:
    factory = Factory()
    pool = pool_of(factory)
    await pool.start()
    workers = [await pool.lease() for _ in range(4)]
    with pytest.raises(QueueTimeoutError, match="all 4 are in use"):
        await pool.lease()
    assert len(factory.made) == 4
    assert factory.most_at_once <= 2
    stats = pool.stats()
    assert (stats.queue_timeouts, stats.leased, stats.waiting) == (1, 4, 0)
    await pool.release(workers[0])
    assert await pool.lease() not in workers
    await pool.stop()


async def test_serves_waiting_leases_in_order() -> None:
    factory = Factory()
    pool = pool_of(factory, size=0, maximum=1, queue_timeout_s=5)
    pool._stopped = False
    first = await pool.lease()
    order: list[int] = []

    async def lease(number: int) -> None:
        worker = await pool.lease()
        order.append(number)
        await pool.release(worker)

    waiting = [asyncio.create_task(lease(n)) for n in range(3)]
    await settled()
    await pool.release(first)
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2]
    await pool.stop()


async def test_a_cancelled_lease_leaves_the_queue() -> None:
    factory = Factory()
    pool = pool_of(factory, size=0, maximum=1, queue_timeout_s=5)
    pool._stopped = False
    leased = await pool.lease()
    waiting = asyncio.create_task(pool.lease())
    await settled()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert pool.stats().waiting == 0
    await pool.release(leased)
    assert await pool.lease() is not leased
    await pool.stop()


async def test_a_worker_assigned_to_a_cancelled_lease_goes_to_the_next() -> None:
    factory = Factory()
    factory.gate.clear()
    pool = pool_of(factory, size=0, maximum=1, queue_timeout_s=5)
    pool._stopped = False
    waiting = asyncio.create_task(pool.lease())
    await settled()
    pool._assign(worker := await _made(factory))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert pool.stats().leased == 0
    assert await pool.lease() is worker
    await pool.stop()


async def test_a_worker_assigned_at_the_timeout_is_leased() -> None:
    factory = Factory()
    factory.gate.clear()
    pool = pool_of(factory, size=0, maximum=1, queue_timeout_s=0.05)
    pool._stopped = False
    waiting = asyncio.create_task(pool.lease())
    await settled()
    worker: Any = FakeWorker()
    asyncio.get_running_loop().call_soon(pool._assign, worker)
    time.sleep(0.1)  # noqa: ASYNC251  so that both happen in one iteration of the loop, the timeout second
    assert await waiting is worker
    assert pool.stats().leased == 1
    factory.gate.set()
    await pool.stop()


async def test_a_lease_cancelled_while_it_takes_an_idle_worker_gives_it_back() -> None:
    factory = Factory()
    pool = pool_of(factory, size=1, maximum=1, queue_timeout_s=5)
    await pool.start()
    leasing = asyncio.create_task(pool.lease())
    await asyncio.sleep(0)
    leasing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leasing
    await settled()
    assert pool.stats().leased == 0
    await pool.release(await pool.lease())
    await pool.stop()


async def _made(factory: Factory) -> Any:
    factory.gate.set()
    worker = await factory()
    factory.gate.clear()
    return worker


async def test_replaces_an_idle_worker_that_dies() -> None:
    factory = Factory()
    pool = pool_of(factory)
    await pool.start()
    await settled()
    factory.made[0].answers.put_nowait(SandboxError("killed from outside"))
    await settled()
    assert factory.made[0].destroyed == 1
    assert pool.stats().idle == 2
    assert len(factory.made) == 3
    await pool.stop()


async def test_start_raises_if_the_first_worker_fails() -> None:
    with pytest.raises(SandboxError, match="no daemon"):
        await pool_of(Factory(failures=1)).start()


@pytest.mark.parametrize("error", [SandboxError, RuntimeError])
async def test_failed_starts_are_retried_and_reported_to_waiting_leases(error: type[Exception]) -> None:
    factory = Factory(error=error)
    pool = pool_of(factory, size=0)
    await pool.start()
    await pool.release(await pool.lease())
    factory.failures = 100
    with pytest.raises(SandboxError, match="no worker could be started: no daemon"):
        await pool.lease()
    assert not pool.healthy
    assert pool.stats().start_failures == 1  # the next attempt comes after a pause
    await pool.stop()


async def test_replaces_an_idle_worker_that_gets_old() -> None:
    factory = Factory()
    pool = pool_of(factory, size=1, maximum=1, idle_for_s=0.05)
    await pool.start()
    await until(lambda: factory.made[0].destroyed == 1)
    worker = await pool.lease()
    assert worker is not factory.made[0]
    await asyncio.sleep(0.1)
    assert pool.stats().leased == 1  # leased workers stay
    await pool.stop()


async def test_an_announcement_keeps_one_more_worker_idle() -> None:
    factory = Factory()
    pool = pool_of(factory, size=1)
    await pool.start()
    await settled()
    pool.expect()
    await settled()
    assert (pool.stats().idle, pool.stats().expected) == (2, 1)
    pool.unexpect()
    await pool.lease()
    await settled()
    assert (pool.stats().idle, pool.stats().leased) == (1, 1)
    assert len(factory.made) == 2  # the announced worker replaces the leased one
    await pool.stop()


async def test_announcements_reserve_no_worker() -> None:
    pool = pool_of(Factory(), size=0, maximum=2)
    pool._stopped = False
    for _ in range(10):
        pool.expect()
    await settled()
    assert (pool.stats().idle, pool.stats().leased, pool.stats().target) == (2, 0, 2)
    assert await pool.lease() is not await pool.lease()  # leased by sessions that announced nothing
    await pool.stop()


async def test_target_follows_the_arrival_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(Pool, "_now", staticmethod(lambda: now))
    factory = Factory()
    pool = pool_of(factory, size=4, maximum=64, queue_timeout_s=5)
    await pool.start()
    pool._start_seconds = 3.0
    assert pool.target == 4
    for _ in range(6):  # one lease per second, each of which takes three seconds to replace
        pool._lease_times.append(now)
        now += 1.0
    assert pool.target == 4 + 3
    now += 10.0
    assert pool.target == 4 + 1
    now += 60.0
    assert pool.target == 4
    for _ in range(8):
        pool._lease_times.append(now)
    assert pool.target == 2 * 4  # at most twice the size
    await pool.stop()


async def test_workers_required_only_by_the_rate_start_one_at_a_time() -> None:
    factory = Factory()
    pool = pool_of(factory, size=4, maximum=64, concurrency=3)
    await pool.start()
    await settled()
    factory.gate.clear()
    pool._start_seconds = 60.0
    for _ in range(4):
        await pool.lease()
    assert pool.target == 4 + 3
    await settled()
    assert pool.stats().starting == 3  # replacements of the leased workers
    for _ in range(3):
        factory.gate.set()
        await settled()
        factory.gate.clear()
    factory.gate.set()
    await settled()
    assert pool.stats().idle == 4 + 3
    assert factory.most_at_once == 3
    await pool.stop()


async def test_six_sessions_in_a_row_never_wait() -> None:
    """One user whose sessions start three times as fast as two containers do."""
    factory = Factory()
    pool = pool_of(factory, size=4, maximum=32)
    await pool.start()
    await settled()
    factory.gate.clear()
    for question in range(6):
        pool.expect()
        await settled()
        pool.unexpect()
        await asyncio.wait_for(pool.lease(), 1)
        assert pool.stats().waiting == 0
        if question % 3 == 2:  # two starts complete
            factory.gate.set()
            await settled()
            factory.gate.clear()
    factory.gate.set()
    await pool.stop()


async def test_surplus_workers_are_destroyed_when_demand_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.sandbox.pool._SHRINK_S", 0.01)
    factory = Factory()
    pool = pool_of(factory, size=1, maximum=4)
    await pool.start()
    for _ in range(3):
        pool.expect()
    await settled()
    assert pool.stats().idle == 4
    await asyncio.sleep(0.05)
    assert pool.stats().idle == 4  # still required
    for _ in range(3):
        pool.unexpect()
    await until(lambda: pool.stats().idle == 1)
    assert sum(worker.destroyed for worker in factory.made) == 3
    await pool.stop()


async def test_a_stopped_pool_rejects_leases() -> None:
    pool = pool_of(Factory())
    with pytest.raises(SandboxError, match="stopped"):
        await pool.lease()


async def test_counts_kills_by_reason() -> None:
    pool = pool_of(Factory())
    await pool.start()
    await pool.release(await pool.lease(), "cancelled")
    pool.count_kill("timeout")
    assert pool.stats().kills == {"cancelled": 1, "timeout": 1}
    await pool.stop()
