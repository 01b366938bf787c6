from __future__ import annotations

import asyncio

import pytest

from benchmarks.async_training import LONGEST_S, SHORTEST_S, SlowTools, correct_by_tool
from service.episode.events import ExecutedTool
from service.sandbox.base import SessionLimits
from trainer.rewards import FinishedEpisode


async def flushed(tools: SlowTools) -> tuple[str, float]:
    session = tools.session(SessionLimits())
    await session.invoke("print(1)")
    result = await session.flush()
    return result.stdout, result.waited_seconds


async def test_flush_waits_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    tools = SlowTools(median=0.5, sigma=3.0, seed=0)
    results = [await flushed(tools) for _ in range(200)]
    waited = [seconds for _, seconds in results]
    assert {text for text, _ in results} == {"1\n"}
    assert [seconds for seconds in slept if seconds] == waited
    assert (min(waited), max(waited)) == (SHORTEST_S, LONGEST_S)
    assert 0.3 < sorted(waited)[100] < 0.8


@pytest.mark.parametrize(
    ("text", "tools", "reward"), [(r"\boxed{1}", True, 1.0), (r"\boxed{1}", False, 0.0), ("1", True, 0.0)]
)
async def test_only_correct_answers_after_a_tool_are_rewarded(text: str, tools: bool, reward: float) -> None:
    tool = ExecutedTool("t", (), 0, "1", "ok", None, None, 0.0, 0.0, 0.0)
    episode = FinishedEpisode(text, tools=(tool,) if tools else ())
    assert await correct_by_tool(episode, {"answer": "1"}) == reward
