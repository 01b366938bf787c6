from __future__ import annotations

from service.deferral.episode import Outcome
from service.deferral.policy import DeferralPolicy
from service.engines.base import Sampling
from service.episode.events import Finished, Sampled
from service.episode.runner import EpisodeRunner
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed


def runner(engine: ScriptedEngine) -> EpisodeRunner:
    return EpisodeRunner(engine, ScriptedSandbox(lambda blocks: printed("")), DeferralPolicy(), Sampling())


async def test_marker_does_not_end_a_completion() -> None:
    engine = ScriptedEngine(f"a <tool_call> b{EOS}")
    events = [event async for event in runner(engine).complete([1], Sampling())]
    assert "".join(e.chunk.text for e in events if isinstance(e, Sampled)) == f"a <tool_call> b{EOS}"
    assert events[-1] == Finished(Outcome.VOID)


async def test_token_limit_is_reported_and_closing_cancels() -> None:
    engine = ScriptedEngine("long")
    stream = runner(engine).complete([1], Sampling(max_tokens=2))
    await anext(stream)
    assert engine.open_streams == 1
    assert [event async for event in stream][-1] == Finished(Outcome.LENGTH)
    stream = runner(engine).complete([1], Sampling())
    await anext(stream)
    await stream.aclose()
    assert engine.open_streams == 0
