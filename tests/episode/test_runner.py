from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from service.deferral.episode import Episode, Outcome
from service.deferral.policy import DeferralPolicy
from service.engines.base import Sampling
from service.episode.events import (
    EpisodeEvent,
    Finished,
    FlushFinished,
    FlushStarted,
    Invoked,
    Observed,
    Sampled,
)
from service.episode.runner import EpisodeRunner
from service.sandbox.base import QueueTimeoutError
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, ScriptedSession, printed

BLOCK = "```python\nx = 6 * 7\n```"
ASK = f"Let\n{BLOCK}\nthen\n```python\nprint(x)\n```<tool_call>"
ANSWER = f"It is \\boxed{{42}}{EOS}"


def new_episode(engine: ScriptedEngine, **policy: int) -> Episode:
    marker = engine.tokenizer.token_id("<tool_call>")
    assert marker is not None
    prompt = engine.tokenizer.encode("6 * 7?", allow_special=True)
    return Episode(prompt, DeferralPolicy(**policy), engine.tokenizer, marker)


async def run(
    engine: ScriptedEngine,
    session: ScriptedSession,
    episode: Episode,
    sampling: Sampling | None = None,
) -> list[EpisodeEvent]:
    stream = runner(engine, session).run(episode, sampling or Sampling(), episode_id="e")
    return [event async for event in stream]


def runner(engine: ScriptedEngine, session: ScriptedSession) -> EpisodeRunner:
    sandbox = ScriptedSandbox(lambda blocks: printed(""))
    sandbox.session = lambda limits, tools=None: session  # type: ignore[method-assign]
    return EpisodeRunner(engine, sandbox, DeferralPolicy(), Sampling(), clock=lambda: 5.0)


async def test_events_of_a_deferred_episode_are_in_order() -> None:
    engine = ScriptedEngine(ASK, ANSWER)
    session = ScriptedSession(lambda blocks: printed("42\n"))
    episode = new_episode(engine)
    events = await run(engine, session, episode)
    kinds = [type(event) for event in events if not isinstance(event, Sampled)]
    assert kinds == [Invoked, Invoked, FlushStarted, FlushFinished, Observed, Finished]
    assert events[-1] == Finished(Outcome.ANSWER)
    [tool] = [event.tool for event in events if isinstance(event, FlushFinished)]
    assert [block.code for block in tool.blocks] == ["x = 6 * 7", "print(x)"]
    assert (tool.id, tool.output, tool.status, tool.delayed, tool.waited_ms) == ("e_0", "42", "ok", 1, 100.0)
    assert session.closed
    assert engine.open_streams == 0


async def test_second_turn_continues_from_the_sampled_tokens() -> None:
    engine = ScriptedEngine(ASK, ANSWER)
    episode = new_episode(engine)
    await run(engine, ScriptedSession(lambda blocks: printed("42")), episode)
    (first, _), (second, _) = engine.calls
    assert second[: len(first)] == first
    assert engine.tokenizer.decode(second).endswith("<tool_call>\nCode execution result: 42\n</tool_call>\n")
    assert episode.context_ids[: len(second)] == second


async def test_each_turn_has_its_own_seed() -> None:
    engine = ScriptedEngine(ASK, ANSWER)
    await run(engine, ScriptedSession(lambda blocks: printed("")), new_episode(engine), Sampling(seed=3))
    seeds = [sampling.seed for _, sampling in engine.calls]
    assert None not in seeds
    assert len(set(seeds)) == 2


async def test_max_tokens_limits_the_whole_episode() -> None:
    engine = ScriptedEngine(ASK, ANSWER)
    episode = new_episode(engine)
    budget = len(engine.tokenizer.encode(ASK, allow_special=True)) + 2
    events = await run(
        engine, ScriptedSession(lambda blocks: printed("42")), episode, Sampling(max_tokens=budget)
    )
    assert episode.transcript.sampled_tokens == budget
    assert events[-1] == Finished(Outcome.LENGTH)


async def test_empty_flush_does_not_reach_the_sandbox() -> None:
    engine = ScriptedEngine("hm <tool_call>", ANSWER)

    def never(blocks: list[str]) -> None:
        raise AssertionError

    events = await run(engine, ScriptedSession(never), new_episode(engine))  # type: ignore[arg-type]
    assert not [event for event in events if isinstance(event, FlushFinished)]
    [observed] = [event for event in events if isinstance(event, Observed)]
    assert "no code is pending" in observed.text


async def test_sampling_continues_while_the_session_waits_for_a_container() -> None:
    engine = ScriptedEngine(f"{BLOCK} and then {EOS}")
    session = ScriptedSession(lambda blocks: printed(""), delay_s=30)
    events = await asyncio.wait_for(run(engine, session, new_episode(engine)), timeout=5)
    assert isinstance(events[-1], Finished)
    assert events[-1].outcome is Outcome.VOID
    assert [block.code for block in events[-1].unflushed] == ["x = 6 * 7"]
    assert session.closed


async def test_sandbox_failure_becomes_an_error_result() -> None:
    class Full(ScriptedSession):
        async def invoke(self, code: str) -> None:
            raise QueueTimeoutError("no container came free in 10 s")

    engine = ScriptedEngine(ASK, ANSWER)
    events = await run(engine, Full(lambda blocks: printed("")), new_episode(engine))
    [tool] = [event.tool for event in events if isinstance(event, FlushFinished)]
    assert tool.status == "sandbox_error"
    assert "SandboxError" in tool.output
    assert events[-1] == Finished(Outcome.ANSWER)


@pytest.mark.parametrize("after", [Sampled, Invoked, FlushStarted, Observed])
async def test_closing_frees_engine_and_session(after: type[EpisodeEvent]) -> None:
    engine = ScriptedEngine(ASK, ANSWER)
    session = ScriptedSession(lambda blocks: printed("42"))
    stream = runner(engine, session).run(new_episode(engine), Sampling(), episode_id="e")
    async with aclosing(stream):
        async for event in stream:
            if isinstance(event, after):
                break
    assert engine.open_streams == 0
    assert session.closed
