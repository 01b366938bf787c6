from __future__ import annotations

import json
from typing import Any

from service.api.chat.choice_builder import MessageText
from service.api.tools.definitions import Function, Functions

ADD = Function(
    name="add",
    parameters={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
)
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def streamed(text: MessageText, whole: str) -> list[dict[str, Any]]:
    deltas = [text.written(char) for char in whole]
    return [delta for delta in [*deltas, text.end(cut_off=False)] if delta]


def test_thought_then_words_then_calls() -> None:
    text = MessageText("assistant\n", "", Functions([ADD]))
    deltas = streamed(text, f"<think>\nhm\n</think>\n\nI add.\n{CALL}\n{CALL}")
    message = text.message()
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
    assert text.finished_calls == 2


def test_one_entry_a_call_in_a_delta() -> None:
    text = MessageText("", "", Functions([ADD]))
    [first, second] = text.written(CALL + CALL)["tool_calls"]
    assert (first["index"], second["index"]) == (0, 1)
    assert first["function"] == {"name": "add", "arguments": '{"a": 1}'}


def test_a_call_alone_has_no_content() -> None:
    text = MessageText("", "", Functions([ADD]))
    streamed(text, CALL)
    assert text.message()["content"] is None


def test_a_call_that_was_begun_for_the_model() -> None:
    text = MessageText("", '<tool_call>\n{"name": "add", "arguments":', Functions([ADD]))
    assert text.written(' {"a": 2}')["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 2}'}
    text.end(cut_off=False)
    assert text.finished_calls == 1


def test_without_functions_the_marker_is_text() -> None:
    text = MessageText("", "", None)
    streamed(text, f"say {CALL}")
    assert text.message() == {"role": "assistant", "content": f"say {CALL}", "refusal": None}
