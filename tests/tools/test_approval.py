from __future__ import annotations

import asyncio
import itertools

import pytest

from service.tools.approval import Approvals, DecidedApprovalError, UnknownApprovalError
from service.tools.base import ToolDeniedError


def approvals(timeout_s: float = 60.0) -> Approvals:
    def check(name: str, arguments: dict[str, object]) -> str | None:
        return "wrong" if "wrong" in arguments else None

    return Approvals(check, timeout_s=timeout_s, clock=itertools.count(1.0).__next__)


async def test_announced_call_is_claimed_with_its_decision() -> None:
    found = approvals()
    found.announce("pay", {"sum": 1})
    found.announce("pay", {"sum": 2})
    first, second = found.open
    found.decide(second.id, approve=True)
    assert found.claim("pay", {"sum": 2}) == second.id
    await found.granted(second.id)
    assert found.claim("pay", {"sum": 2}) not in (None, first.id, second.id)  # one decision, one call
    assert len(found.blocking) == 1


async def test_denied_and_late_calls_raise() -> None:
    found = approvals(timeout_s=0.01)
    for reason, message in ((None, "pay\\(\\) was denied$"), ("no", "was denied: no")):
        request_id = found.claim("pay", {})
        assert request_id is not None
        found.decide(request_id, approve=False, reason=reason)
        with pytest.raises(ToolDeniedError, match=message):
            await found.granted(request_id)
    request_id = found.claim("pay", {})
    assert request_id is not None
    with pytest.raises(ToolDeniedError, match="not approved within"):
        await found.granted(request_id)
    with pytest.raises(DecidedApprovalError):
        found.decide(request_id, approve=True)


async def test_invalid_calls_need_no_decision() -> None:
    found = approvals()
    found.announce("pay", {"wrong": 1})
    assert (found.open, found.claim("pay", {"wrong": 1})) == ((), None)


async def test_requests_end_with_their_flush() -> None:
    found = approvals(timeout_s=0.01)
    found.announce("pay", {})
    [request] = found.open
    found.end_flush()
    await asyncio.sleep(0.05)  # its timer has ended too
    with pytest.raises(UnknownApprovalError):
        found.decide(request.id, approve=True)


async def test_changes_are_reported() -> None:
    found = approvals()
    seen: list[bool | None] = []
    found.on_change = lambda request: seen.append(request.approve)
    found.announce("pay", {})
    found.decide(found.open[0].id, approve=True)
    assert seen == [None, True]


async def test_waits_until_all_blocking_requests_are_decided() -> None:
    found = approvals()
    found.announce("pay", {"sum": 0})  # nothing waits for it
    ids = [found.claim("pay", {"sum": number}) for number in (1, 2)]
    settled = asyncio.create_task(found.settled())
    for request_id in ids:
        await asyncio.sleep(0)
        assert not settled.done()
        found.decide(str(request_id), approve=True)
    await settled
