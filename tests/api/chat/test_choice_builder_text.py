from __future__ import annotations

import json
from typing import Any

from service.api.chat.choice_builder import ChoiceBuilder
from service.api.tools.definitions import Function, Functions
from service.deferral.episode import Outcome
from service.engines.base import TokenChunk
from service.episode.accumulator import ReplyAccumulator
from service.episode.events import Finished, Sampled
from service.episode.reasoning_parser import ReasoningParser
from service.episode.tool_parser import ToolCallParser
from tests.support.char_tokenizer import CharTokenizer

ADD = Function(
    name="add",
    parameters={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
)
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def builder(*, prefix: str = "", functions: list[Function] | None = None) -> ChoiceBuilder:
    tools = ToolCallParser(Functions(functions).check, strict=False) if functions else None
    reasoning = ReasoningParser("assistant\n")
    reply = ReplyAccumulator(CharTokenizer(), {}, prefix=prefix, reasoning=reasoning, tools=tools)
    return ChoiceBuilder(0, reply)


def write(choice: ChoiceBuilder, text: str) -> dict[str, Any]:
    delta = choice.add(Sampled(TokenChunk(tuple(map(ord, text)), text, (-1.0,) * len(text))))
    return {} if delta is None else dict(delta.delta)


def stream(choice: ChoiceBuilder, text: str) -> list[dict[str, Any]]:
    deltas = [write(choice, char) for char in text]
    last = choice.add(Finished(Outcome.VOID))
    assert last is not None
    return [*deltas, dict(last.delta)]


def test_thought_content_and_calls() -> None:
    choice = builder(functions=[ADD])
    deltas = stream(choice, f"<think>\nhm\n</think>\n\nI add.\n{CALL}\n{CALL}")
    message: Any = choice.message()
    assert (message["reasoning"], message["reasoning_content"], message["content"]) == ("hm", "hm", "I add.")
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "add", "arguments": '{"a": 1}'}
    ] * 2
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm"
    assert "".join(delta.get("content", "") for delta in deltas) == "I add."
    calls: dict[int, dict[str, str]] = {}
    for delta in deltas:
        for part in delta.get("tool_calls", []):
            if "id" in part:
                calls[part["index"]] = {"id": part["id"], "arguments": ""}
            calls[part["index"]]["arguments"] += part["function"]["arguments"]
    assert [json.loads(call["arguments"]) for call in calls.values()] == [{"a": 1}, {"a": 1}]
    assert [call["id"] for call in calls.values()] == [call["id"] for call in message["tool_calls"]]
    assert choice.finish_reason == "tool_calls"


def test_delta_has_one_entry_per_call() -> None:
    [first, second] = write(builder(functions=[ADD]), CALL + CALL)["tool_calls"]
    assert (first["index"], second["index"]) == (0, 1)
    assert first["function"] == {"name": "add", "arguments": '{"a": 1}'}


def test_message_of_a_call_alone_has_no_content() -> None:
    choice = builder(functions=[ADD])
    stream(choice, CALL)
    assert choice.message()["content"] is None


def test_call_begun_by_the_prefix() -> None:
    choice = builder(prefix='<tool_call>\n{"name": "add", "arguments":', functions=[ADD])
    delta = write(choice, ' {"a": 2}')
    assert delta["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 2}'}
    choice.add(Finished(Outcome.VOID))
    assert choice.finish_reason == "tool_calls"


def test_marker_is_text_without_functions() -> None:
    choice = builder()
    stream(choice, f"say {CALL}")
    message = choice.message()
    assert (message["content"], "tool_calls" in message) == (f"say {CALL}", False)
