from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from service.api.responses.items import InputItem
from service.api.responses.messages import Conversation
from tests.support.char_tokenizer import CharTokenizer

_items: TypeAdapter[list[InputItem]] = TypeAdapter(list[InputItem])


def messages(*items: dict[str, Any]) -> list[dict[str, Any]]:
    conversation = Conversation(CharTokenizer(), "<tool_call>")
    conversation.add(_items.validate_python(items))
    return conversation.messages


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "output_text", "text": text, "annotations": []}]}


CALL = {"type": "code_interpreter_call", "code": "print(1)", "outputs": [{"type": "logs", "logs": "1"}]}
SEEN = "<tool_call>\nCode execution result: 1\n</tool_call>\n"


def test_what_the_model_gave_out_in_a_row_is_one_reply() -> None:
    assert messages(
        {"role": "user", "content": "?"}, said("a"), CALL, said("b"), {"role": "user", "content": "!"}
    ) == [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": f"a{SEEN}b"},
        {"role": "user", "content": "!"},
    ]


def test_a_call_in_a_thought_stays_in_it() -> None:
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    assert messages(thought, CALL, thought, said("so")) == [
        {"role": "assistant", "content": f"<think>\nhm{SEEN}hm\n</think>\n\nso"}
    ]
    assert messages(thought) == [{"role": "assistant", "content": "<think>\nhm\n</think>\n\n"}]


def test_calls_of_functions_and_their_answers() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "9"}]}
    function = {"name": "f", "arguments": "{}"}
    assert messages(said("I call."), call, output) == [
        {
            "role": "assistant",
            "content": "I call.",
            "tool_calls": [{"id": "c", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "9", "tool_call_id": "c"},
    ]
