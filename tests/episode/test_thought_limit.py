from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.deferral.episode import Transcript
from service.deferral.policy import DeferralPolicy
from service.engines.base import Sampling, TokenChunk
from service.episode.events import Finished, Sampled
from service.episode.runner import EpisodeRunner
from service.episode.thought_limit import CLOSING, ThoughtLimit, limit_thought, supports_thought_limit
from tests.support.char_tokenizer import CharTokenizer
from tests.support.scripted import EOS, ScriptedSandbox, printed
from tests.support.thinking import ThinkingEngine, ThinkingTokenizer

TOKENIZER = ThinkingTokenizer()


async def collect(
    engine: ThinkingEngine, thought: ThoughtLimit, sampling: Sampling | None = None
) -> list[TokenChunk]:
    prompt = engine.tokenizer.encode("user: ?\n", allow_special=True)
    stops, sampling = engine.eos_token_ids, sampling or Sampling(max_tokens=200)
    return [chunk async for chunk in limit_thought(engine, prompt, sampling, stops, thought)]


def text_of(chunks: Sequence[TokenChunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def test_limit_needs_a_token_for_the_end_of_a_thought() -> None:
    assert supports_thought_limit(TOKENIZER)
    assert not supports_thought_limit(CharTokenizer())
    with pytest.raises(ValueError, match="</think>"):
        ThoughtLimit(CharTokenizer(), "")


@pytest.mark.parametrize("split", [1, 3, 50])
async def test_thought_is_closed_after_exactly_its_budget(split: int) -> None:
    engine = ThinkingEngine("<think>\n" + "x" * 50 + "</think>\n\nDone." + EOS, "Short." + EOS, size=split)
    chunks = await collect(engine, ThoughtLimit(TOKENIZER, "", 10))
    assert text_of(chunks) == "<think>\n" + "x" * 9 + CLOSING + "Short." + EOS
    [forced] = [chunk for chunk in chunks if chunk.is_forced]
    assert forced.text == CLOSING
    assert forced.ids == tuple(TOKENIZER.encode(CLOSING, allow_special=True))
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
    # The engine continues after the forced tokens.
    assert TOKENIZER.decode(engine.calls[-1][0]).endswith("x" * 9 + CLOSING)


async def test_short_thought_is_not_changed() -> None:
    reply = "<think>\nHm.\n</think>\n\nDone." + EOS
    chunks = await collect(ThinkingEngine(reply, continues=True), ThoughtLimit(TOKENIZER, "", 100))
    assert text_of(chunks) == reply
    assert not any(chunk.is_forced for chunk in chunks)


async def test_reply_without_a_thought_is_not_limited() -> None:
    reply = "No need to think about it." + EOS
    chunks = await collect(ThinkingEngine(reply, continues=True), ThoughtLimit(TOKENIZER, "", 5))
    assert text_of(chunks) == reply


async def test_prompt_may_open_the_thought() -> None:
    engine = ThinkingEngine("abcdef</think>No" + EOS, "Yes" + EOS)
    chunks = await collect(engine, ThoughtLimit(TOKENIZER, "assistant\n<think>\n", 3))
    assert text_of(chunks) == "abc" + CLOSING + "Yes" + EOS
    assert ThoughtLimit(TOKENIZER, "<think>\n\n</think>\n\n", 3).is_over


async def test_token_limit_of_the_reply_comes_first() -> None:
    engine = ThinkingEngine("<think>" + "x" * 50)
    chunks = await collect(engine, ThoughtLimit(TOKENIZER, "", 30), Sampling(max_tokens=8))
    assert text_of(chunks) == "<think>" + "x" * 7
    assert chunks[-1].finish_reason == "length"


async def test_constraint_applies_after_the_thought() -> None:
    engine = ThinkingEngine("Let me see.</think>", '{"a": 1}' + EOS)
    sampling = Sampling(max_tokens=100, json_schema="{}")
    chunks = await collect(engine, ThoughtLimit(TOKENIZER, ""), sampling)
    assert text_of(chunks) == '<think>\nLet me see.</think>\n\n{"a": 1}' + EOS
    assert [call.json_schema for _, call in engine.calls] == [None, "{}"]


async def test_end_of_turn_in_a_thought_ends_the_reply() -> None:
    chunks = await collect(ThinkingEngine("<think>Hm" + EOS), ThoughtLimit(TOKENIZER, "", 50))
    assert text_of(chunks) == "<think>Hm" + EOS
    assert chunks[-1].finish_reason == "stop"


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 7), st.integers(1, 90))
async def test_counts_are_exact(thought: int, budget: int, size: int, most: int) -> None:
    reply = "<think>" + "x" * thought + "</think>Done." + EOS
    engine = ThinkingEngine(reply, size=size, continues=True)
    chunks = await collect(engine, ThoughtLimit(TOKENIZER, "", budget), Sampling(max_tokens=most))
    ids = [token for chunk in chunks for token in chunk.ids]
    assert len(ids) <= most + len(CLOSING)
    written = text_of(chunks).removeprefix("<think>").partition("</think>")[0].rstrip("\n")
    assert len(written) == min(thought, budget, most - 1)
    assert any(chunk.is_forced for chunk in chunks) == (thought >= budget and most > budget + 1)
    assert [bool(chunk.finish_reason) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


async def test_forced_tokens_are_masked_in_the_transcript() -> None:
    engine = ThinkingEngine("<think>\n```python\nx = 1\n" + "x" * 50, "\\boxed{1}" + EOS)
    sandbox = ScriptedSandbox(lambda blocks: printed("1"))
    runner = EpisodeRunner(engine, sandbox, DeferralPolicy(), Sampling())
    prompt = TOKENIZER.encode("user: ?\n", allow_special=True)
    episode = runner.start(prompt)
    thought = ThoughtLimit(TOKENIZER, "", 19)
    events = [
        event
        async for event in runner.run(episode, Sampling(max_tokens=200), episode_id="e", thought=thought)
    ]
    transcript: Transcript = episode.transcript
    masked = [token for token, kept in zip(transcript.ids, transcript.mask, strict=True) if not kept]
    assert TOKENIZER.decode(masked) == CLOSING
    assert transcript.text == "<think>\n```python\nx = 1\nxx" + CLOSING + "\\boxed{1}" + EOS
    assert sum(len(event.chunk.ids) for event in events if isinstance(event, Sampled)) == len(transcript.ids)
    assert isinstance(events[-1], Finished)
    assert not events[-1].unflushed  # the block that the model did not finish is never run
