from __future__ import annotations

from service.deferral.episode import Outcome
from service.engines.base import Sampling
from service.episode.events import Finished, Sampled
from service.episode.runner import run_plain
from tests.support.scripted import EOS, ScriptedEngine


async def test_the_marker_does_not_stop_it() -> None:
    engine = ScriptedEngine(f"a <tool_call> b{EOS}")
    events = [event async for event in run_plain([1], engine, Sampling())]
    assert "".join(e.chunk.text for e in events if isinstance(e, Sampled)) == f"a <tool_call> b{EOS}"
    assert events[-1] == Finished(Outcome.VOID)


async def test_a_cut_is_told_and_closing_cancels() -> None:
    engine = ScriptedEngine("long")
    stream = run_plain([1], engine, Sampling(max_tokens=2))
    await anext(stream)
    assert engine.open_streams == 1
    assert [event async for event in stream][-1] == Finished(Outcome.LENGTH)
    stream = run_plain([1], engine, Sampling())
    await anext(stream)
    await stream.aclose()
    assert engine.open_streams == 0
