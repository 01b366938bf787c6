from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.deferral.episode import Outcome
from service.engines.base import TokenChunk
from service.episode.accumulator import ReplyAccumulator, ReplyPart, Usage, usage_of
from service.episode.events import (
    CodeToolCall,
    EpisodeEvent,
    ExecutedTool,
    Finished,
    FlushFinished,
    FlushStarted,
    Invoked,
    InvokedBlock,
    Observed,
    Sampled,
)
from service.episode.reasoning_parser import ReasoningDelta, ReasoningParser
from service.episode.stop_strings import StopStringHit
from service.episode.tool_parser import CallFailed, TextDelta, ToolCallEnd, ToolCallParser, ToolCallStart
from tests.support.char_tokenizer import CharTokenizer
from tests.support.scripted import EOS, ScriptedEngine

ENGINE = ScriptedEngine(EOS)
[EOS_ID] = ENGINE.eos_token_ids
ENDINGS = {EOS_ID: EOS}
MARKER = "<tool_call>"
BLOCK = InvokedBlock("x = 1", 5, 1.0)
TOOL = ExecutedTool("t", (BLOCK,), 0, "1", "ok", None, None, 0.0, 0.0, 0.0)
THOUGHT = "<think>\nLet us see.\n</think>\n\n"
FIRST = f"{THOUGHT}I say\n```python\nx = 1\n```{MARKER}"
SEEN = "\nCode execution result: 1\n</tool_call>\n"
SECOND = "so it is 1." + EOS


def accumulator(**options: Any) -> ReplyAccumulator:
    return ReplyAccumulator(ENGINE.tokenizer, ENDINGS, **options)


def chunk(text: str, *, stop: bool = False, **options: Any) -> Sampled:
    ids = tuple(ENGINE.tokenizer.encode(text, allow_special=True)) + ((EOS_ID,) if stop else ())
    return Sampled(TokenChunk(ids, text + (EOS if stop else ""), (-1.0,) * len(ids), **options))


def chunks(text: str, cuts: list[int]) -> list[Sampled]:
    """``text`` in chunks of so many tokens each."""
    ids, found = ENGINE.tokenizer.encode(text, allow_special=True), []
    for size in [*cuts, len(ids)]:
        if piece := tuple(ids[:size]):
            found.append(Sampled(TokenChunk(piece, ENGINE.tokenizer.decode(piece), (-1.0,) * len(piece))))
        ids = ids[size:]
    return found


def episode(cuts: list[int]) -> list[EpisodeEvent]:
    return [
        *chunks(FIRST, cuts),
        Invoked("t", 0, BLOCK),
        FlushStarted("t", (BLOCK,)),
        FlushFinished(TOOL),
        Observed((1, 2, 3), SEEN),
        *chunks(SECOND, cuts),
        Finished(Outcome.ANSWER),
    ]


def add_all(reply: ReplyAccumulator, events: list[EpisodeEvent]) -> list[ReplyPart]:
    return [part for event in events for part in reply.add(event)]


def content(parts: list[ReplyPart]) -> str:
    return "".join(part.text for part in parts if isinstance(part, TextDelta))


def thought(parts: list[ReplyPart]) -> str:
    return "".join(part.text for part in parts if isinstance(part, ReasoningDelta))


@given(st.lists(st.integers(1, 9), max_size=30), st.sampled_from([None, MARKER]))
def test_result_does_not_depend_on_the_chunks(cuts: list[int], hidden_marker: str | None) -> None:
    reply = ReplyAccumulator(
        ENGINE.tokenizer, ENDINGS, reasoning=ReasoningParser(""), hidden_marker=hidden_marker
    )
    parts = add_all(reply, episode(cuts))
    flush = "" if hidden_marker else MARKER + SEEN
    assert content(parts) == f"I say\n```python\nx = 1\n```{flush}so it is 1."
    assert thought(parts) == "Let us see."
    assert reply.text == FIRST + SEEN + SECOND.removesuffix(EOS)
    tokens = len(ENGINE.tokenizer.encode(FIRST + SECOND, allow_special=True))
    assert (reply.sampled_tokens, reply.observation_tokens) == (tokens, 3)
    assert len(reply.ids) == tokens + 3 - 1  # without the end token
    assert (reply.executed, reply.pending, reply.unflushed) == ([TOOL], [], ())
    assert reply.final_answer == "so it is 1."


def test_end_token_is_counted_and_not_shown() -> None:
    reply = accumulator()
    assert reply.add(chunk("ab", stop=True)) == [TextDelta("ab")]
    assert reply.shown_tokens == 2
    assert reply.add(chunk("", stop=True)) == []
    assert reply.sampled_tokens == 4
    assert reply.ids == [ord("a"), ord("b")]


def test_tokens_of_a_stop_string_are_counted() -> None:
    reply = accumulator()
    reply.add(StopStringHit((1, 2), "end"))
    assert reply.stop_string == "end"
    assert usage_of(7, [reply]) == Usage(7, 2, 0, 0, None)


def test_reasoning_tokens_are_counted_up_to_the_end_of_the_thought() -> None:
    tokenizer = CharTokenizer()
    tokenizer.token_id = lambda token: 7  # type: ignore[method-assign]
    reply = ReplyAccumulator(tokenizer, ENDINGS, reasoning=ReasoningParser("<think>\n"))
    for ids, text in [((1, 2), "hm"), ((3, 7, 4, 5), "m</think>so"), ((6, 8), "on")]:
        reply.add(Sampled(TokenChunk(ids, text, (-1.0,) * len(ids))))
    assert (reply.reasoning_tokens, reply.sampled_tokens) == (4, 8)


def test_reply_without_a_thought_has_no_reasoning_tokens() -> None:
    reply = accumulator(reasoning=ReasoningParser(""))
    reply.add(chunk("It is 7.", stop=True))
    assert reply.reasoning_tokens == 0


def test_usage_counts_the_prompt_once() -> None:
    first, second = accumulator(), accumulator()
    first.add(chunk("abc", cached_tokens=5))
    first.add(Observed((1, 2), "xy"))
    first.add(chunk("b", cached_tokens=9))  # a later turn
    second.add(chunk("d", cached_tokens=7))
    usage = usage_of(10, [first, second])
    assert usage == Usage(10, 5, 2, 0, cached_tokens=5)
    assert (usage.completion_tokens, usage.total_tokens) == (7, 17)


def test_hidden_marker_without_code_is_text() -> None:
    reply = accumulator(hidden_marker=MARKER)
    assert content(reply.add(chunk(f"hm {MARKER}"))) == "hm "
    assert content(reply.add(Observed((1,), "\nnothing\n"))) == f"{MARKER}\nnothing\n"


def test_code_left_at_the_end() -> None:
    reply = accumulator()
    add_all(reply, [chunk("```python\nx = 1\n```"), Invoked("t", 0, BLOCK)])
    assert reply.pending == [BLOCK]
    reply.add(Finished(Outcome.ANSWER, (BLOCK,)))
    assert (reply.unflushed, reply.final_answer) == ((BLOCK,), None)


CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'


def with_tools(prefix: str = "") -> ReplyAccumulator:
    return ReplyAccumulator(
        ENGINE.tokenizer, ENDINGS, prefix=prefix, tools=ToolCallParser(lambda *call: None, strict=False)
    )


def test_calls_are_parts_and_leave_no_final_answer() -> None:
    reply = with_tools()
    parts = add_all(reply, [chunk("I call. "), chunk(CALL), Finished(Outcome.VOID)])
    assert content(parts) == "I call."
    assert ToolCallStart(0, "f") in parts
    assert (reply.finished_calls, reply.final_answer) == (1, None)


def test_call_begun_by_the_prefix() -> None:
    reply = with_tools('<tool_call>\n{"name": "f", "arguments":')
    parts = add_all(reply, [chunk(" {}}\n</tool_call>"), Finished(Outcome.VOID)])
    assert isinstance(parts[0], ToolCallStart)
    assert isinstance(parts[-1], ToolCallEnd)
    assert reply.text.startswith('<tool_call>\n{"name"')


@pytest.mark.parametrize("abandon", [True, False])
def test_unfinished_call_fails_at_the_end_but_not_if_abandoned(abandon: bool) -> None:
    reply = with_tools()
    reply.add(chunk('<tool_call>\n{"name": "f", "arguments": {"a'))
    parts = reply.abandon() if abandon else reply.end(cut_off=False)
    assert any(isinstance(part, CallFailed) for part in parts) is not abandon


@pytest.mark.parametrize("marker", [None, MARKER])
@pytest.mark.parametrize(("answer", "expected"), [("It rains.", "It rains."), ("So \\boxed{3}.", "3")])
def test_a_box_from_a_tool_is_no_answer(marker: str | None, answer: str, expected: str) -> None:
    """Neither if the observation is part of the content, nor if it is hidden."""
    call = CodeToolCall("c", "weather", {}, read_only=True, started_at=0.0, status="ok", output="\\boxed{7}")
    seen = "\nCode execution result: \\boxed{7}\n</tool_call>\n"
    reply = accumulator(hidden_marker=marker)
    events: list[EpisodeEvent] = [
        *chunks(f"I ask\n```python\nx\n```{MARKER}", []),
        Invoked("t", 0, BLOCK),
        FlushStarted("t", (BLOCK,)),
        FlushFinished(replace(TOOL, calls=(call,))),
        Observed(tuple(ENGINE.tokenizer.encode(seen, allow_special=True)), seen),
        chunk(answer, stop=True),
        Finished(Outcome.VOID, ()),
    ]
    for event in events:
        reply.add(event)
    assert reply.final_answer == expected
