from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from service.api.responses.items import Conversation, InputItem, StoredReply
from service.deferral.policy import PAPER_POLICY
from tests.support.char_tokenizer import CharTokenizer

_items: TypeAdapter[list[InputItem]] = TypeAdapter(list[InputItem])


def messages(*items: dict[str, Any]) -> list[dict[str, Any]]:
    conversation = Conversation(CharTokenizer(), PAPER_POLICY)
    conversation.add(_items.validate_python(items))
    return conversation.messages


def assistant_message(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "output_text", "text": text, "annotations": []}]}


CALL = {"type": "code_interpreter_call", "code": "print(1)", "outputs": [{"type": "logs", "logs": "1"}]}
SEEN = "<tool_call>\nCode execution result: 1\n</tool_call>\n"


def test_consecutive_output_items_are_one_reply() -> None:
    assert messages(
        {"role": "user", "content": "?"},
        assistant_message("a"),
        CALL,
        assistant_message("b"),
        {"role": "user", "content": "!"},
    ) == [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": f"a{SEEN}b"},
        {"role": "user", "content": "!"},
    ]


def test_thought_is_a_field_of_the_message() -> None:
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    assert messages(thought, CALL, thought, assistant_message("so")) == [
        {"role": "assistant", "content": f"{SEEN}so", "reasoning_content": "hmhm"}
    ]
    assert messages(thought) == [{"role": "assistant", "content": "", "reasoning_content": "hm"}]


def test_stored_reply_keeps_its_ids() -> None:
    conversation = Conversation(CharTokenizer(), PAPER_POLICY)
    conversation.add_message("user", "?")
    conversation.add([StoredReply((1, 2, 3), "abc")])
    conversation.add_message("user", "!")
    assert [message["role"] for message in conversation.messages] == ["user", "assistant", "user"]
    assert conversation.proven == {1: (1, 2, 3)}


def test_function_calls_and_results_become_messages() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "9"}]}
    function = {"name": "f", "arguments": "{}"}
    assert messages(assistant_message("I call."), call, output) == [
        {
            "role": "assistant",
            "content": "I call.",
            "tool_calls": [{"id": "c", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "9", "tool_call_id": "c"},
    ]
