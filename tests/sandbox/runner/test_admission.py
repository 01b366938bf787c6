from __future__ import annotations

import asyncio

import pytest

from service.sandbox.base import QueueTimeoutError
from service.sandbox.runner.admission import SessionAdmission
from service.sandbox.runner.protocol import DrainingError


async def test_a_free_slot_goes_to_the_longest_waiting_session() -> None:
    admission = SessionAdmission(1, max_waiting=2, timeout_s=30)
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


async def test_waiting_times_out() -> None:
    admission = SessionAdmission(1, max_waiting=1, timeout_s=0.01)
    await admission.enter()
    with pytest.raises(QueueTimeoutError, match=r"0\.01 s"):
        await admission.enter()
    assert admission.waiting == 0


async def test_a_cancelled_waiter_takes_no_slot() -> None:
    admission = SessionAdmission(1, max_waiting=1, timeout_s=30)
    await admission.enter()
    waiter = asyncio.create_task(admission.enter())
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    admission.leave()
    assert (admission.active, admission.waiting) == (0, 0)
    await admission.enter()


async def test_without_a_queue_a_free_slot_is_granted() -> None:
    admission = SessionAdmission(1, max_waiting=0, timeout_s=30)
    await admission.enter()
    with pytest.raises(QueueTimeoutError, match="full"):
        await admission.enter()


async def test_rejects_sessions_after_close() -> None:
    admission = SessionAdmission(1, max_waiting=1, timeout_s=30)
    admission.close()
    with pytest.raises(DrainingError, match="draining"):
        await admission.enter()
