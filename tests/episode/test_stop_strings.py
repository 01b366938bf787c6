from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.deferral.policy import DeferralPolicy
from service.engines.base import Sampling, TokenChunk
from service.episode.events import Finished, FlushFinished, Sampled
from service.episode.runner import new_episode, run_episode
from service.episode.stop_strings import StopStringHit, find_stop, held_back, until_stop
from service.sandbox.base import SessionLimits
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed


async def chunks(pieces: Sequence[str]) -> AsyncGenerator[TokenChunk, None]:
    for at, piece in enumerate(pieces):
        last = at == len(pieces) - 1
        yield TokenChunk((at,), piece, (-1.0,), finish_reason="stop" if last else None)


async def run(pieces: Sequence[str], stops: Sequence[str]) -> tuple[str, list[int], list[int] | None]:
    """Text and ids that are shown, and those that the stop string took."""
    text, ids, taken = "", list[int](), None
    async for item in until_stop(chunks(pieces), stops, {}):
        if isinstance(item, StopStringHit):
            taken = list(item.ids)
        else:
            text += item.text
            ids += item.ids
    return text, ids, taken


CUTS = st.lists(st.text("ab\n", min_size=0, max_size=4), min_size=1, max_size=12)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


@given(CUTS, STOPS)
async def test_any_cut_gives_the_text_before_the_stop_that_is_complete_first(
    pieces: list[str], stops: list[str]
) -> None:
    whole = "".join(pieces)
    at = find_stop(whole, stops)
    text, ids, taken = await run(pieces, stops)
    assert text == (whole if at is None else whole[:at])
    assert (taken is None) == (at is None)
    # No token is lost or told twice, up to the one that completed the stop string.
    seen = ids + (taken or [])
    assert seen == list(range(len(seen)))


def test_which_stop_counts() -> None:
    assert find_stop("xabcdy", ["abcd", "bc"]) == 2  # complete first
    assert find_stop("xabc", ["bc", "abc"]) == 1  # complete together: the longer
    assert find_stop("xyz", ["abc"]) is None


@given(st.text("ab", max_size=6), STOPS)
def test_what_is_held_back_is_the_longest_beginning_of_a_stop(text: str, stops: list[str]) -> None:
    ends = [
        n
        for n in range(len(text) + 1)
        if any(len(s) > n and s.startswith(text[len(text) - n :]) for s in stops)
    ]
    assert held_back(text, stops) == max(ends, default=0)


async def test_text_flows_as_soon_as_it_can_belong_to_no_stop() -> None:
    told: list[str] = []
    source = chunks(["a", "b", "x", "a"])

    async def noted() -> AsyncGenerator[TokenChunk, None]:
        async for chunk in source:
            told.append(f"in {chunk.text}")
            yield chunk

    async for item in until_stop(noted(), ["abc"], {}):
        assert isinstance(item, TokenChunk)
        told.append(f"out {item.text}")
    assert told == ["in a", "in b", "in x", "out a", "out b", "out x", "in a", "out a"]


async def test_the_token_that_ends_a_reply_is_no_text() -> None:
    source = chunks(["a<|", "<|end|>"])
    items = [item async for item in until_stop(source, ["|end", "<|<"], {1: "<|end|>"})]
    assert [item.text for item in items if isinstance(item, TokenChunk)] == ["a<|", "<|end|>"]


ASK = "So\n```python\nx = 1\n```\nand <tool_call>"


@pytest.mark.parametrize(
    ("stop", "shown"),
    [
        ("and", "So\n```python\nx = 1\n```\n"),
        ("<tool_call>", ASK.removesuffix("<tool_call>")),
        ("call", ASK[:-5]),
    ],
)
async def test_in_an_episode_it_ends_before_anything_runs(stop: str, shown: str) -> None:
    engine, sandbox = ScriptedEngine(ASK, "\\boxed{1}" + EOS), ScriptedSandbox(lambda blocks: printed("1"))
    policy = DeferralPolicy()
    episode = new_episode([1], policy, engine)
    session = sandbox.session(SessionLimits(run_limit_s=1))
    events = [
        e async for e in run_episode(episode, engine, session, Sampling(), episode_id="e", stops=[stop])
    ]
    text = "".join(event.chunk.text for event in events if isinstance(event, Sampled))
    assert text == shown[: len(text)]
    assert len(text) >= len(shown) - len("<tool_")
    assert not any(isinstance(event, FlushFinished) for event in events)
    assert isinstance(events[-1], Finished)
    assert not events[-1].outcome.is_truncated
    assert sandbox.sessions[0].closed
    assert engine.open_streams == 0


async def test_what_code_printed_is_not_searched() -> None:
    engine = ScriptedEngine(ASK, "so \\boxed{7}" + EOS)
    sandbox = ScriptedSandbox(lambda blocks: printed("the end"))
    episode = new_episode([1], DeferralPolicy(), engine)
    session = sandbox.session(SessionLimits(run_limit_s=1))
    stops = ["the end", "and \nCode"]
    events = [e async for e in run_episode(episode, engine, session, Sampling(), episode_id="e", stops=stops)]
    assert not any(isinstance(event, StopStringHit) for event in events)
    assert episode.answer == "7"
