from __future__ import annotations

import pytest

from service.deferral.policy import DeferralPolicy
from service.deferral.prompt import instruct
from service.engines.base import Sampling
from service.episode.events import Finished
from service.episode.runner import Backend
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed


def make(engine: ScriptedEngine, **policy: object) -> Backend:
    sandbox = ScriptedSandbox(lambda blocks: printed("1"))
    return Backend(engine, sandbox, DeferralPolicy.model_validate(policy), Sampling())


def test_only_the_last_user_turn_carries_the_instruction() -> None:
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


def test_there_must_be_a_user_turn() -> None:
    with pytest.raises(ValueError, match="no user message"):
        make(ScriptedEngine(EOS)).render([{"role": "system", "content": "c"}], deferral=True)


def test_room_is_bound_by_the_policy_only_where_there_is_one() -> None:
    backend = make(ScriptedEngine(EOS), max_episode_tokens=100)
    assert backend.room([1] * 10, deferral=True) == 90
    assert backend.room([1] * 10, deferral=False) == 9_990


async def test_an_episode_does_not_outgrow_the_model() -> None:
    engine = ScriptedEngine("x" * 50)
    engine.context_length = 20
    backend = make(engine)
    stream = backend.episode([1] * 15, Sampling(), backend.policy, eager=True, episode_id="e")
    events = [event async for event in stream]
    assert engine.calls[0][1].max_tokens == 5
    assert isinstance(events[-1], Finished)
    assert events[-1].outcome.is_truncated


def test_a_vocabulary_without_the_marker_cannot_defer() -> None:
    backend = make(ScriptedEngine(EOS), marker="<go>")
    with pytest.raises(ValueError, match="no token '<go>'"):
        backend.episode([1], Sampling(), backend.policy, eager=True, episode_id="e")
