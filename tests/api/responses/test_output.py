from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from service.api.responses.items import new_response_id
from service.api.responses.output import OutputBuilder, response_usage
from service.deferral.episode import Outcome
from service.engines.base import TokenChunk
from service.episode.accumulator import ReplyAccumulator, Usage
from service.episode.events import (
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
from service.episode.reasoning_parser import ReasoningParser
from tests.support.scripted import EOS, ScriptedEngine

BLOCK = InvokedBlock("x = 1", 5, 1.0)
TOOL = ExecutedTool("t", (BLOCK,), 0, "1", "ok", None, None, 0.0, 0.0, 0.0, container="box")
FIRST = "<think>\nLet us see.\n</think>\n\nI say\n```python\nx = 1\n```<tool_call>"
SECOND = "so it is 1." + EOS


def builder() -> OutputBuilder:
    engine = ScriptedEngine("")
    endings = dict.fromkeys(engine.eos_token_ids, EOS)
    reply = ReplyAccumulator(
        engine.tokenizer, endings, reasoning=ReasoningParser(""), hidden_marker="<tool_call>"
    )
    return OutputBuilder(new_response_id(), reply)


def chunks(text: str, cuts: list[int]) -> list[Sampled]:
    """``text`` in chunks of so many tokens each."""
    ids = ScriptedEngine("").tokenizer.encode(text, allow_special=True)
    decode, found = ScriptedEngine("").tokenizer.decode, []
    for size in cuts:
        if piece := tuple(ids[:size]):
            found.append(Sampled(TokenChunk(piece, decode(piece), (-1.0,) * len(piece))))
        ids = ids[size:]
    return [*found, *([Sampled(TokenChunk(tuple(ids), decode(ids), (-1.0,) * len(ids)))] if ids else [])]


def episode(cuts: list[int]) -> list[EpisodeEvent]:
    return [
        *chunks(FIRST, cuts),
        Invoked("t", 0, BLOCK),
        FlushStarted("t", (BLOCK,)),
        FlushFinished(TOOL),
        Observed((1, 2, 3), "\nCode execution result: 1\n</tool_call>\n"),
        *chunks(SECOND, cuts),
        Finished(Outcome.ANSWER),
    ]


def add_all(output: OutputBuilder, events: list[EpisodeEvent]) -> list[dict[str, Any]]:
    return [stream_event for event in events for stream_event in output.add(event)]


@given(st.lists(st.integers(1, 9), max_size=30))
def test_items_do_not_depend_on_the_chunks(cuts: list[int]) -> None:
    output = builder()
    add_all(output, episode(cuts))
    thought, message, call, answer = output.output.items
    assert thought["content"] == [{"type": "reasoning_text", "text": "Let us see."}]
    part: Any = message["content"]
    assert part[0]["text"] == "I say\n```python\nx = 1\n```"
    assert (call["code"], call["container_id"]) == ("x = 1", "box")
    part = answer["content"]
    assert part[0]["text"] == "so it is 1."


@given(st.integers(0, 60))
def test_abandon_closes_all_items(at: int) -> None:
    output = builder()
    events = add_all(output, episode([1] * 100)[:at])
    events += output.abandon()
    added = [event["output_index"] for event in events if event["type"] == "response.output_item.added"]
    done = [event["output_index"] for event in events if event["type"] == "response.output_item.done"]
    assert sorted(added) == sorted(done) == list(range(len(output.output.items)))
    assert all(item["status"] != "in_progress" for item in output.output.items)


def test_usage_has_all_details() -> None:
    assert response_usage(Usage(7, 4, 2, 3, cached_tokens=5)) == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 0},
        "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 3, "observation_tokens": 2},
        "total_tokens": 13,
    }
