from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.deferral.episode import Episode, Outcome
from service.deferral.policy import DeferralPolicy
from service.engines.base import Sampling
from service.episode.events import (
    EpisodeEvent,
    Finished,
    FlushFinished,
    FlushStarted,
    Invoked,
    LiveOutput,
    Observed,
    Sampled,
)
from service.episode.runner import EpisodeRunner
from service.sandbox.base import ExecutionResult, OnOutput, OutputChunk, QueueTimeoutError
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


async def test_live_output_is_between_the_start_and_the_end_of_its_flush() -> None:
    engine = ScriptedEngine(ASK, ANSWER)
    stream = runner(engine, ScriptedSession(lambda blocks: printed("42\n<tool_call>\n"))).run(
        new_episode(engine), Sampling(), episode_id="e", live_output=True
    )
    events = [event async for event in stream]
    kinds = [type(event) for event in events if not isinstance(event, Sampled)]
    assert kinds == [
        *(Invoked, Invoked, FlushStarted, LiveOutput, LiveOutput, FlushFinished, Observed, Finished)
    ]
    shown = [event for event in events if isinstance(event, LiveOutput)]
    assert shown == [LiveOutput("e_0", OutputChunk("stdout", text)) for text in ("42\n", "<tool_call>\n")]


@given(st.text(max_size=40), st.sampled_from(["", "\\boxed{1}", "<tool_call>", "<|im_end|>"]))
def test_an_episode_is_the_same_with_and_without_live_output(text: str, special: str) -> None:
    async def play(live_output: bool) -> tuple[list[int], list[EpisodeEvent]]:
        engine = ScriptedEngine(ASK, ANSWER)
        episode = new_episode(engine)
        session = ScriptedSession(lambda blocks: printed(text + special))
        stream = runner(engine, session).run(episode, Sampling(), episode_id="e", live_output=live_output)
        events = [event async for event in stream if not isinstance(event, LiveOutput)]
        # Times of the machine; all others come from the session or the clock.
        untimed = [
            FlushFinished(replace(event.tool, waited_ms=0, container_wait_ms=0))
            if isinstance(event, FlushFinished)
            else event
            for event in events
        ]
        return episode.context_ids, untimed

    assert asyncio.run(play(True)) == asyncio.run(play(False))


async def test_a_slow_reader_does_not_delay_the_flush() -> None:
    flushed = asyncio.Event()

    class Session(ScriptedSession):
        async def flush(self, on_output: OnOutput | None = None) -> ExecutionResult:
            assert on_output is not None
            for number in range(3):
                on_output(OutputChunk("stdout", str(number)))
                await asyncio.sleep(0)
            flushed.set()
            return printed("012")

    engine = ScriptedEngine(ASK, ANSWER)
    stream = runner(engine, Session(lambda blocks: printed(""))).run(
        new_episode(engine), Sampling(), episode_id="e", live_output=True
    )
    shown = []
    async with aclosing(stream):
        async for event in stream:
            if isinstance(event, LiveOutput):
                await flushed.wait()
                shown.append(event.chunk.text)
    assert shown == ["0", "1", "2"]


async def test_leaving_during_live_output_cancels_the_flush() -> None:
    cancelled = asyncio.Event()

    class Session(ScriptedSession):
        async def flush(self, on_output: OnOutput | None = None) -> ExecutionResult:
            assert on_output is not None
            on_output(OutputChunk("stdout", "1"))
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()
            return printed("")

    engine, before = ScriptedEngine(ASK, ANSWER), asyncio.all_tasks()
    session = Session(lambda blocks: printed(""))
    stream = runner(engine, session).run(new_episode(engine), Sampling(), episode_id="e", live_output=True)
    async with aclosing(stream):
        async for event in stream:
            if isinstance(event, LiveOutput):
                break
    assert cancelled.is_set()
    assert session.closed
    assert asyncio.all_tasks() == before


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
