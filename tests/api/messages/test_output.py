"""Blocks and stream events of a message agree, however the reply is cut into chunks."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from service.api.messages.output import MessageBuilder
from service.api.messages.schemas import AnthropicMessageObject
from service.deferral.episode import Outcome
from service.engines.base import TokenChunk
from service.episode.accumulator import ReplyAccumulator, usage_of
from service.episode.events import (
    CodeToolCall,
    EpisodeEvent,
    ExecutedTool,
    Finished,
    FlushFinished,
    FlushStarted,
    FlushSuspended,
    Invoked,
    InvokedBlock,
    Observed,
    Sampled,
)
from service.episode.reasoning_parser import ReasoningParser
from service.episode.stop_strings import StopStringHit
from service.episode.tool_parser import ToolCallParser
from tests.support.char_tokenizer import CharTokenizer
from tests.support.messages_api import checked

MARKER = "<tool_call>"


def builder(*, tools: bool = False, code: bool = False, **options: Any) -> MessageBuilder:
    reply = ReplyAccumulator(
        CharTokenizer(),
        {},
        reasoning=ReasoningParser(""),
        tools=ToolCallParser(lambda name, _: None if name == "f" else "unknown", strict=False)
        if tools
        else None,
        hidden_marker=MARKER if code else None,
    )
    return MessageBuilder(
        "msg_1",
        "m",
        lambda: usage_of(7, [reply]),
        reply,
        **{"seal": str.upper, "max_tokens": 100, **options},
    )


def sampled(text: str) -> Sampled:
    return Sampled(TokenChunk(tuple(map(ord, text)), text, (-1.0,) * len(text)))


def flush(code: str, output: str, status: Any = "ok") -> list[EpisodeEvent]:
    block, tool_id = InvokedBlock(code, 1, 1.0), f"exec_{code}"
    tool = ExecutedTool(tool_id, (block,), 0, output, status, 1.0, 2.0, 1.0, 1.0, 1.0)
    return [
        *(sampled(f"```python\n{code}\n```"), Invoked(tool_id, 0, block), sampled(MARKER)),
        *(FlushStarted(tool_id, (block,)), FlushFinished(tool), Observed((1, 2), f"\nresult: {output}\n")),
    ]


def run(built: MessageBuilder, events: Sequence[EpisodeEvent]) -> dict[str, Any]:
    """Add ``events`` and return the message; streamed and whole are the same."""
    stream = [built.start()]
    for event in events:
        stream += built.add(event)
    stream += built.end()
    json.dumps(stream, allow_nan=False)
    whole: dict[str, Any] = built.message()
    assert checked(stream) == whole
    AnthropicMessageObject.model_validate(whole)
    return whole


def split(draw: st.DrawFn, text: str) -> list[EpisodeEvent]:
    """Cut ``text`` into chunks."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=5)))
    return [sampled(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if b > a]


PIECES = (
    *("Hello ", "world.", "\n\n", "<think>", "</think>", "<tool", MARKER, "</tool_call>"),
    *('<tool_call>\n{"name": "f", "arguments": {"a": [1, "x"]}}\n</tool_call>',),
    *('<tool_call>\n{"arguments": {"a": 1e999}, "name": "f"}\n</tool_call>',),
    *('<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',),
    *('<tool_call>\n{"name": "f", "arguments": {"a": }}\n</tool_call>',),
    *('<tool_call>\n{"name": "f", "arguments": {"a": -1e999, "b": "\\ud83d"}}\n</tool_call>',),
    *('<tool_call>\n{"name": "f", "arguments": {"a": {"b": "c',),
)


@st.composite
def replies(draw: st.DrawFn) -> tuple[str, list[EpisodeEvent]]:
    text = "".join(draw(st.lists(st.sampled_from(PIECES), max_size=6)))
    return text, split(draw, text)


@given(replies(), st.sampled_from([Outcome.ANSWER, Outcome.VOID, Outcome.LENGTH]), st.booleans())
def test_stream_adds_up_to_the_message(
    reply: tuple[str, list[EpisodeEvent]], outcome: Outcome, omits: bool
) -> None:
    text, events = reply
    whole = run(builder(tools=True, omits_thoughts=omits), [*events, Finished(outcome)])
    once = run(
        builder(tools=True, omits_thoughts=omits), [*([sampled(text)] if text else []), Finished(outcome)]
    )
    for message in (whole, once):
        for block in message["content"]:
            block.pop("id", None)
    assert whole["content"] == once["content"]
    assert whole["stop_reason"] == once["stop_reason"]


@given(st.data())
def test_runs_of_code_lie_between_texts(data: st.DataObject) -> None:
    """Each flush is a call and its result. The texts, calls and results appear in the order of the events."""
    events: list[EpisodeEvent] = []
    expected: list[Any] = []
    for number in range(data.draw(st.integers(0, 3))):
        text = data.draw(st.sampled_from(["", "I compute.\n"]))
        events += [*([sampled(text)] if text else []), *flush(f"x{number}", str(number))]
        expected += [f"{text}```python\nx{number}\n```", {"code": f"x{number}"}, str(number)]
    events += [sampled("Done."), Finished(Outcome.ANSWER)]
    content = run(builder(code=True), events)["content"]
    found = [block.get("text") or block.get("input") or block["content"]["stdout"] for block in content]
    assert found == [*expected, "Done."]
    uses = [block for block in content if block["type"] == "server_tool_use"]
    results = [block for block in content if block["type"] == "code_execution_tool_result"]
    assert [use["id"] for use in uses] == [result["tool_use_id"] for result in results]
    assert len({use["id"] for use in uses}) == len(uses)


def test_code_in_a_thought_splits_it() -> None:
    events = [sampled("<think>Hm. "), *flush("x", "1"), sampled("So.</think>One."), Finished(Outcome.ANSWER)]
    content = run(builder(code=True), events)["content"]
    kinds = [block["type"] for block in content]
    assert kinds == ["thinking", "server_tool_use", "code_execution_tool_result", "thinking", "text"]
    assert content[0]["signature"] == content[0]["thinking"].upper()


def test_output_that_never_arrived_has_no_result() -> None:
    events = [*flush("x", "1")[:4], Finished(Outcome.LENGTH)]
    content = run(builder(code=True), events)["content"]
    assert [block["type"] for block in content] == ["text", "server_tool_use"]


def test_results_by_status() -> None:
    found = {}
    for status in ("ok", "output_limit", "error", "oom", "timeout", "sandbox_error"):
        [_, _, result] = run(builder(code=True), [*flush("x", "out", status), Finished(Outcome.ANSWER)])[
            "content"
        ]
        content = result["content"]
        found[status] = content.get("error_code") or (
            content["stdout"],
            content["stderr"],
            content["return_code"],
        )
    assert found == {
        "ok": ("out", "", 0),
        "output_limit": ("out", "", 0),
        "error": ("", "out", 1),
        "oom": ("", "out", 137),
        "timeout": "execution_time_exceeded",
        "sandbox_error": "unavailable",
    }


def test_call_that_a_limit_cuts_off_has_a_partial_input() -> None:
    for written, expected in [
        ('{"a": 1, "b": [2, {"c"', {"a": 1, "b": [2, {}]}),
        ('{"a": "x', {}),
        ('{"a": b', {}),
        ("{", {}),
    ]:
        text = f'Now\n<tool_call>\n{{"name": "f", "arguments": {written}'
        message = run(builder(tools=True), [sampled(text), Finished(Outcome.LENGTH)])
        assert [block.get("input") for block in message["content"]] == [None, expected]
        assert message["stop_reason"] == "model_context_window_exceeded"


def test_input_contains_only_values_that_clients_can_parse() -> None:
    written = '{"a": -1e999, "b\\ud83d": "\\ud83d", "c": "\\ud83d\\ude00"}'
    text = f'<tool_call>\n{{"name": "f", "arguments": {written}}}\n</tool_call>'
    [block] = run(builder(tools=True), [sampled(text), Finished(Outcome.ANSWER)])["content"]
    assert block["input"] == {"a": -sys.float_info.max, "b?": "?", "c": "😀"}


def test_stop_reasons() -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'

    def reason(events: Sequence[EpisodeEvent], outcome: Outcome, **options: Any) -> tuple[str, str | None]:
        message = run(builder(tools=True, **options), [*events, Finished(outcome)])
        return message["stop_reason"], message["stop_sequence"]

    assert reason([sampled("a")], Outcome.ANSWER) == ("end_turn", None)
    assert reason([sampled("a")], Outcome.VOID) == ("end_turn", None)
    assert reason([sampled("a")], Outcome.TURN_LIMIT) == ("max_tokens", None)
    assert reason([sampled("a")], Outcome.LENGTH, max_tokens=1) == ("max_tokens", None)
    assert reason([sampled("a")], Outcome.LENGTH) == ("model_context_window_exceeded", None)
    assert reason([sampled(call)], Outcome.ANSWER) == ("tool_use", None)
    stop = StopStringHit((1,), "##")
    assert reason([sampled("a"), stop], Outcome.VOID, stops=["##"]) == ("stop_sequence", "##")
    # A stop string that the server added itself.
    assert reason([sampled(call), stop], Outcome.VOID) == ("tool_use", None)


def test_calls_of_code_end_the_message() -> None:
    block = InvokedBlock("x", 1, 1.0)
    arguments: dict[str, object] = {"city": "\ud800", "n": 10**30}
    call = CodeToolCall("call_code_1", "get_weather", arguments, False, 1.0, by_client=True)
    functions = {"get_weather": ("get-weather", "code_execution_20250825")}
    built = builder(code=True, functions=functions)
    started = [*flush("x", "1"), sampled("ab"), FlushStarted("exec_2", (block,))]
    message = run(built, [*started, FlushSuspended("exec_2", (block,), (call,))])
    run_id = message["content"][-2]["id"]
    assert run_id != message["content"][1]["id"]
    assert message["content"][-1] == {
        "type": "tool_use",
        "id": "call_code_1",
        "name": "get-weather",
        "input": {"city": "?", "n": 10**30},
        "caller": {"type": "code_execution_20250825", "tool_id": run_id},
    }
    assert message["stop_reason"] == "tool_use"
    before = message["usage"]
    built.reply.sampled_tokens += 10  # the next request has continued the reply
    assert built.message()["usage"] == before


def test_usage_counts_cached_tokens_apart() -> None:
    event = sampled("ab")
    events = [Sampled(event.chunk._replace(cached_tokens=5)), Finished(Outcome.ANSWER)]
    usage = run(builder(), events)["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (2, 5, 2)
