from __future__ import annotations

import asyncio

import pytest

from service.api.errors import ApiError
from service.api.limits import Admission


async def hold(gate: Admission, episodes: int, until: asyncio.Event, log: list[int]) -> None:
    async with gate.admit(episodes):
        log.append(episodes)
        await until.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_admission_is_first_come_first_served() -> None:
    gate, until, log = Admission(3, 10, 10), asyncio.Event(), list[int]()
    tasks = [asyncio.create_task(hold(gate, n, until, log)) for n in (2, 3, 1)]
    await settle()
    # 1 would fit beside 2, but 3 came before it.
    assert (log, gate.running, gate.waiting) == ([2], 2, 4)
    until.set()
    await asyncio.gather(*tasks)
    assert (log, gate.running, gate.waiting) == ([2, 3, 1], 0, 0)


async def test_full_queue_rejects_at_once() -> None:
    gate, until = Admission(1, 1, 10), asyncio.Event()
    tasks = [asyncio.create_task(hold(gate, 1, until, [])) for _ in range(2)]
    await settle()
    with pytest.raises(ApiError, match="queue is full") as caught:
        await hold(gate, 1, until, [])
    assert caught.value.status == 429
    assert caught.value.headers()["Retry-After"] == "5"
    until.set()
    await asyncio.gather(*tasks)


async def test_timeout_in_the_queue_is_429_and_leaves_no_waiter() -> None:
    gate, until = Admission(1, 5, 0.05), asyncio.Event()
    first = asyncio.create_task(hold(gate, 1, until, []))
    await settle()
    with pytest.raises(ApiError, match="in time"):
        await hold(gate, 1, until, [])
    assert gate.waiting == 0
    until.set()
    await first
    assert gate.running == 0


async def test_leaving_the_queue_admits_the_next() -> None:
    gate, until, log = Admission(2, 10, 10), asyncio.Event(), list[int]()
    first = asyncio.create_task(hold(gate, 1, until, log))
    big = asyncio.create_task(hold(gate, 2, until, log))
    small = asyncio.create_task(hold(gate, 1, until, log))
    await settle()
    big.cancel()
    await settle()
    assert log == [1, 1]
    until.set()
    await asyncio.gather(first, small)
    assert gate.running == 0


async def test_cancellation_at_admission_releases_the_place() -> None:
    gate, until = Admission(1, 5, 10), asyncio.Event()
    first = asyncio.create_task(hold(gate, 1, until, []))
    second = asyncio.create_task(hold(gate, 1, until, []))
    await settle()
    until.set()
    await first
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert (gate.running, gate.waiting) == (0, 0)


async def test_rejects_more_episodes_than_the_limit() -> None:
    with pytest.raises(ApiError) as caught:
        async with Admission(2, 10, 10).admit(3):
            pass
    assert (caught.value.status, caught.value.param) == (400, "n")
