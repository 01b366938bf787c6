from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from service.api.chat.request import Message
from tests.api.chat.test_request import request

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def message(**fields: Any) -> Message:
    return Message.model_validate(fields)


def test_messages_have_the_form_of_the_chat_template() -> None:
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
        {"role": "tool", "content": "x"},
        {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": 1}}]},
        {"role": "user", "contnet": "x"},
    ],
)
def test_rejects_invalid_messages(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        message(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"role": "user", "content": "x", "name": "bob"},
        {"role": "system", "content": "x", "name": "bob"},
        {"role": "user", "content": "x", "reasoning": "x", "tool_call_id": "call_1", "type": "text"},
        {
            "role": "assistant",
            "refusal": "no",
            "annotations": [{}],
            "thinking_blocks": [{"type": "thinking"}],
        },
        {
            "role": "assistant",
            "content": "x",
            "provider_specific_fields": {"a": None},
            "reasoning_details": [],
        },
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "x"}, {"type": "text", "text": "x"}],
        },
        {"role": "tool", "content": None, "tool_call_id": "call_1", "name": "f"},
        {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
    ],
)
def test_accepts_fields_without_effect(fields: dict[str, Any]) -> None:
    turn = message(**fields).as_turn()
    assert set(turn) == {"role", "content"}
    assert turn["content"] in ("x", "no", "")


def test_accepts_custom_tool_calls_and_arguments_as_objects() -> None:
    custom = {"id": "c", "type": "custom", "custom": {"name": "patch", "input": "*** Begin"}}
    as_object = {"id": "d", "function": {"name": "f", "arguments": {"a": 1}}}
    calls: Any = message(role="assistant", tool_calls=[custom, as_object]).as_turn()["tool_calls"]
    assert [call["function"] for call in calls] == [
        {"name": "patch", "arguments": {"input": "*** Begin"}},
        {"name": "f", "arguments": {"a": 1}},
    ]


def test_tool_message_requires_an_earlier_call() -> None:
    question = {"role": "user", "content": "?"}
    answer = {"role": "tool", "tool_call_id": "call_1", "content": "5"}
    called = {"role": "assistant", "tool_calls": [CALL]}
    assert len(request(messages=[question, called, answer]).messages) == 3
    for messages in ([question, answer], [question, answer, called]):
        with pytest.raises(ValidationError, match="no earlier call has the id 'call_1'"):
            request(messages=messages)
