from __future__ import annotations

import asyncio

from service.episode.block_queue import BlockQueue
from service.sandbox.base import ExecutionResult, SandboxError
from tests.support.scripted import ScriptedSession, printed


async def test_blocks_arrive_in_order() -> None:
    seen: list[list[str]] = []

    def answer(blocks: list[str]) -> ExecutionResult:
        seen.append(blocks)
        return printed("")

    queue = BlockQueue(ScriptedSession(answer, delay_s=0.001))
    for code in "abc":
        queue.add(code)
    await queue.flush()
    queue.add("d")
    await queue.flush()
    assert seen == [["a", "b", "c"], ["d"]]


async def test_failed_invoke_is_reported_at_the_next_flush_only() -> None:
    class Broken(ScriptedSession):
        async def invoke(self, code: str) -> None:
            if code == "a":
                raise SandboxError("gone")
            await super().invoke(code)

    queue = BlockQueue(Broken(lambda blocks: printed("".join(blocks))))
    queue.add("a")
    queue.add("b")
    result = await queue.flush()
    assert (result.status, result.stderr) == ("sandbox_error", "gone")
    queue.add("c")
    assert (await queue.flush()).stdout == "c"


async def test_wait_for_a_container_counts_as_waiting() -> None:
    class Queued(ScriptedSession):
        async def invoke(self, code: str) -> None:
            await asyncio.sleep(0.3)
            await super().invoke(code)

    queue = BlockQueue(Queued(lambda blocks: printed("")))
    queue.add("a")
    assert (await queue.flush()).waited_seconds >= 0.29  # the session itself says 0.1


async def test_only_the_first_block_of_a_flush_waits_for_a_container() -> None:
    class Queued(ScriptedSession):
        async def invoke(self, code: str) -> None:
            await asyncio.sleep(0.2 if code == "a" else 0)
            await super().invoke(code)

    queue = BlockQueue(Queued(lambda blocks: printed("")))
    queue.add("a")
    queue.add("b")
    await queue.flush()
    assert queue.container_wait_s >= 0.19
    queue.add("c")
    await queue.flush()
    assert queue.container_wait_s < 0.19


async def test_blocks_follow_the_prewarming_and_closing_cancels_it() -> None:
    order: list[str] = []

    class Slow(ScriptedSession):
        async def prepare(self) -> None:
            await asyncio.sleep(0.01)
            order.append("prepared")

        async def invoke(self, code: str) -> None:
            order.append(code)

    queue = BlockQueue(Slow(lambda blocks: printed("")))
    queue.prewarm()
    queue.add("a")
    await queue.flush()
    assert order == ["prepared", "a"]
    queue.prewarm()
    await queue.close()
    assert order == ["prepared", "a"]


async def test_close_drops_pending_blocks() -> None:
    session = ScriptedSession(lambda blocks: printed(""), delay_s=30)
    queue = BlockQueue(session)
    queue.add("a")
    await queue.close()
    assert session.closed
    assert session.pending == []
