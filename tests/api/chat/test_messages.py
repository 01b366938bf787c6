from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from service.api.chat.messages import Message
from tests.api.chat.test_request import request

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def message(**fields: Any) -> Message:
    return Message.model_validate(fields)


def test_as_chat_templates_take_them() -> None:
    assert message(role="developer", content="x").as_turn() == {"role": "system", "content": "x"}
    turn = message(role="assistant", tool_calls=[CALL], reasoning="hm").as_turn()
    assert turn["content"] == ""
    assert turn["reasoning_content"] == "hm"
    assert turn["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
    assert message(role="tool", tool_call_id="call_1", content="5").as_turn() == {
        "role": "tool",
        "content": "5",
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"role": "user"},
        {"role": "user", "content": "x", "tool_calls": [CALL]},
        {"role": "user", "content": "x", "reasoning": "x"},
        {"role": "user", "content": "x", "tool_call_id": "call_1"},
        {"role": "tool", "content": "x"},
        {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "[]"}}]},
        {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{"}}]},
        {"role": "user", "content": "x", "name": "me"},
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        message(**fields)


def test_an_answer_of_a_tool_needs_its_call() -> None:
    question = {"role": "user", "content": "?"}
    answer = {"role": "tool", "tool_call_id": "call_1", "content": "5"}
    called = {"role": "assistant", "tool_calls": [CALL]}
    assert len(request(messages=[question, called, answer]).messages) == 3
    for messages in ([question, answer], [question, answer, called]):
        with pytest.raises(ValidationError, match="no call before it has the id 'call_1'"):
            request(messages=messages)
