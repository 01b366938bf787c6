from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from service.api.responses.items import new_response_id
from service.api.responses.output import Reply
from service.deferral.episode import Outcome
from service.engines.base import TokenChunk
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
from service.episode.stop_strings import StopStringHit
from tests.support.scripted import EOS, ScriptedEngine

BLOCK = InvokedBlock("x = 1", 5, 1.0)
TOOL = ExecutedTool("t", (BLOCK,), 0, "1", "ok", None, None, 0.0, 0.0, 0.0, container="box")
FIRST = "<think>\nLet us see.\n</think>\n\nI say\n```python\nx = 1\n```<tool_call>"
SECOND = "so it is 1." + EOS


def new_reply() -> Reply:
    return Reply(new_response_id(), ScriptedEngine(""), prompt_end="", marker="<tool_call>")


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


def taken(reply: Reply, events: list[EpisodeEvent]) -> list[dict[str, Any]]:
    return [told for event in events for told in reply.take(event)]


@given(st.lists(st.integers(1, 9), max_size=30))
def test_however_the_tokens_come_the_items_are_the_same(cuts: list[int]) -> None:
    reply = new_reply()
    taken(reply, episode(cuts))
    thought, message, call, answer = reply.output.items
    assert thought["content"] == [{"type": "reasoning_text", "text": "Let us see."}]
    part: Any = message["content"]
    assert part[0]["text"] == "I say\n```python\nx = 1\n```"
    assert (call["code"], call["container_id"]) == ("x = 1", "box")
    part = answer["content"]
    assert part[0]["text"] == "so it is 1."
    assert reply.text == FIRST + "\nCode execution result: 1\n</tool_call>\n" + SECOND.removesuffix(EOS)
    assert reply.sampled_tokens == len(FIRST) - len("<tool_call>") + 1 + len(SECOND) - len(EOS) + 1
    assert reply.observation_tokens == 3


@given(st.integers(0, 60))
def test_a_reply_that_is_abandoned_leaves_nothing_open(at: int) -> None:
    reply = new_reply()
    events = taken(reply, episode([1] * 100)[:at])
    events += reply.abandon()
    added = [event["output_index"] for event in events if event["type"] == "response.output_item.added"]
    done = [event["output_index"] for event in events if event["type"] == "response.output_item.done"]
    assert sorted(added) == sorted(done) == list(range(len(reply.output.items)))
    assert all(item["status"] != "in_progress" for item in reply.output.items)


def test_what_a_stop_string_took_is_counted() -> None:
    reply = new_reply()
    reply.take(StopStringHit((1, 2)))
    usage: Any = reply.usage(7)
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (7, 2, 9)


def test_cached_tokens_are_those_of_the_first_turn() -> None:
    reply = new_reply()
    for cached in (5, 90):
        reply.take(Sampled(TokenChunk((65,), "A", (-1.0,), cached_tokens=cached)))
    usage: Any = reply.usage(7)
    assert usage["input_tokens_details"]["cached_tokens"] == 5
