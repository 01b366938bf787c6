from __future__ import annotations

import asyncio

import pytest

from service.sandbox.base import QueueTimeoutError, SandboxError
from service.sandbox.runner.admission import Admission


async def test_a_place_that_comes_free_goes_to_the_first_who_waits() -> None:
    admission = Admission(1, max_waiting=2, timeout_s=30)
    order: list[str] = []

    async def visit(name: str) -> None:
        await admission.enter()
        order.append(name)
        await asyncio.sleep(0)
        admission.leave()

    await admission.enter()
    visits = [asyncio.create_task(visit(name)) for name in ("first", "second")]
    await asyncio.sleep(0)
    assert (admission.active, admission.waiting) == (1, 2)
    with pytest.raises(QueueTimeoutError, match="full"):
        await admission.enter()
    admission.leave()
    await asyncio.gather(*visits)
    assert order == ["first", "second"]
    assert (admission.active, admission.waiting) == (0, 0)


async def test_who_waits_too_long_is_told_so() -> None:
    admission = Admission(1, max_waiting=1, timeout_s=0.01)
    await admission.enter()
    with pytest.raises(QueueTimeoutError, match=r"0\.01 s"):
        await admission.enter()
    assert admission.waiting == 0


async def test_who_gives_up_waiting_takes_no_place() -> None:
    admission = Admission(1, max_waiting=1, timeout_s=30)
    await admission.enter()
    waiter = asyncio.create_task(admission.enter())
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    admission.leave()
    assert (admission.active, admission.waiting) == (0, 0)
    await admission.enter()


async def test_with_no_queue_a_free_place_is_still_given() -> None:
    admission = Admission(1, max_waiting=0, timeout_s=30)
    await admission.enter()
    with pytest.raises(QueueTimeoutError, match="full"):
        await admission.enter()


async def test_nobody_enters_after_the_close() -> None:
    admission = Admission(1, max_waiting=1, timeout_s=30)
    admission.close()
    with pytest.raises(SandboxError, match="shutting down"):
        await admission.enter()
