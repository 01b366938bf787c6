from __future__ import annotations

import pytest

from service.deferral.policy import DeferralPolicy
from service.deferral.prompt import instruct
from service.engines.base import Sampling
from service.episode.events import Finished
from service.episode.runner import EpisodeRunner
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed


def make(engine: ScriptedEngine, **policy: object) -> EpisodeRunner:
    sandbox = ScriptedSandbox(lambda blocks: printed("1"))
    return EpisodeRunner(engine, sandbox, DeferralPolicy.model_validate(policy), Sampling())


def test_instruction_is_added_to_the_last_user_turn_only() -> None:
    engine = ScriptedEngine(EOS)
    turns = [
        {"role": role, "content": content}
        for role, content in (("user", "a"), ("user", "b"), ("system", "c"))
    ]
    rendered = engine.tokenizer.decode(make(engine).render(turns, deferral=True))
    assert rendered == f"user: a\nuser: {instruct('b')}\nsystem: c\n"
    assert (
        engine.tokenizer.decode(make(engine).render(turns, deferral=False)) == "user: a\nuser: b\nsystem: c\n"
    )
    assert turns[1] == {"role": "user", "content": "b"}


def test_render_requires_a_user_or_system_turn_for_deferral() -> None:
    with pytest.raises(ValueError, match="no user or system message"):
        make(ScriptedEngine(EOS)).render([{"role": "assistant", "content": "c"}], deferral=True)


def test_room_is_limited_by_the_policy_only_with_deferral() -> None:
    runner = make(ScriptedEngine(EOS), max_episode_tokens=100)
    assert runner.room([1] * 10, deferral=True) == 90
    assert runner.room([1] * 10, deferral=False) == 9_990


async def test_episode_is_limited_by_the_context_length() -> None:
    engine = ScriptedEngine("x" * 50)
    engine.context_length = 20
    runner = make(engine)
    stream = runner.run(runner.start([1] * 15), Sampling(), episode_id="e")
    events = [event async for event in stream]
    assert engine.calls[0][1].max_tokens == 5
    assert isinstance(events[-1], Finished)
    assert events[-1].outcome.is_truncated


def test_start_rejects_a_vocabulary_without_the_marker() -> None:
    runner = make(ScriptedEngine(EOS), marker="<go>")
    with pytest.raises(ValueError, match="no token '<go>'"):
        runner.start([1])
