from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.deferral.policy import DeferralPolicy
from service.engines.base import Sampling, TokenChunk
from service.episode.events import Finished, FlushFinished, Sampled
from service.episode.runner import EpisodeRunner
from service.episode.stop_strings import StopStringHit, find_stop, partial_stop_length, until_stop
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed


async def chunks(pieces: Sequence[str]) -> AsyncGenerator[TokenChunk, None]:
    for at, piece in enumerate(pieces):
        last = at == len(pieces) - 1
        yield TokenChunk((at,), piece, (-1.0,), finish_reason="stop" if last else None)


async def run(pieces: Sequence[str], stops: Sequence[str]) -> tuple[str, list[int], StopStringHit | None]:
    """Return the text and ids that are shown, and the stop string that was found."""
    text, ids, hit = "", list[int](), None
    async for item in until_stop(chunks(pieces), stops, {}):
        if isinstance(item, StopStringHit):
            hit = item
        else:
            text += item.text
            ids += item.ids
    return text, ids, hit


CUTS = st.lists(st.text("ab\n", min_size=0, max_size=4), min_size=1, max_size=12)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


@given(CUTS, STOPS)
async def test_text_ends_before_the_first_complete_stop_string(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    found = find_stop(whole, stops)
    text, ids, hit = await run(pieces, stops)
    assert text == (whole if found is None else whole[: found[0]])
    assert (None if hit is None else hit.text) == (None if found is None else found[1])
    # Each token is reported once, up to the one that completed the stop string.
    seen = ids + ([] if hit is None else list(hit.ids))
    assert seen == list(range(len(seen)))


def test_first_complete_stop_string_counts() -> None:
    assert find_stop("xabcdy", ["abcd", "bc"]) == (2, "bc")  # complete first
    assert find_stop("xabc", ["bc", "abc"]) == (1, "abc")  # complete together: the longer
    assert find_stop("xyz", ["abc"]) is None


@given(st.text("ab", max_size=6), STOPS)
def test_longest_partial_stop_string_is_found(text: str, stops: list[str]) -> None:
    ends = [
        n
        for n in range(len(text) + 1)
        if any(len(s) > n and s.startswith(text[len(text) - n :]) for s in stops)
    ]
    assert partial_stop_length(text, stops) == max(ends, default=0)


async def test_text_is_released_once_it_belongs_to_no_stop_string() -> None:
    order: list[str] = []
    source = chunks(["a", "b", "x", "a"])

    async def noted() -> AsyncGenerator[TokenChunk, None]:
        async for chunk in source:
            order.append(f"in {chunk.text}")
            yield chunk

    async for item in until_stop(noted(), ["abc"], {}):
        assert isinstance(item, TokenChunk)
        order.append(f"out {item.text}")
    assert order == ["in a", "in b", "in x", "out a", "out b", "out x", "in a", "out a"]


async def test_end_token_is_not_searched() -> None:
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
async def test_stop_string_ends_an_episode_before_code_runs(stop: str, shown: str) -> None:
    engine, sandbox = ScriptedEngine(ASK, "\\boxed{1}" + EOS), ScriptedSandbox(lambda blocks: printed("1"))
    runner = EpisodeRunner(engine, sandbox, DeferralPolicy(), Sampling())
    episode = runner.start([1])
    events = [event async for event in runner.run(episode, Sampling(), episode_id="e", stop=[stop])]
    text = "".join(event.chunk.text for event in events if isinstance(event, Sampled))
    assert text == shown[: len(text)]
    assert len(text) >= len(shown) - len("<tool_")
    assert not any(isinstance(event, FlushFinished) for event in events)
    assert isinstance(events[-1], Finished)
    assert not events[-1].outcome.is_truncated
    assert sandbox.sessions[0].closed
    assert engine.open_streams == 0


async def test_output_of_code_is_not_searched() -> None:
    engine = ScriptedEngine(ASK, "so \\boxed{7}" + EOS)
    sandbox = ScriptedSandbox(lambda blocks: printed("the end"))
    runner = EpisodeRunner(engine, sandbox, DeferralPolicy(), Sampling())
    episode = runner.start([1])
    stop = ["the end", "and \nCode"]
    events = [event async for event in runner.run(episode, Sampling(), episode_id="e", stop=stop)]
    assert not any(isinstance(event, StopStringHit) for event in events)
    assert episode.answer == "7"
