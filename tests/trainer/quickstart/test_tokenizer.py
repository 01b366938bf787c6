from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from trainer.quickstart.tokenizer import SPECIAL, VISIBLE, build_tokenizer

Message = dict[str, Any]


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str, **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


def render(tokenizer: PreTrainedTokenizerFast, *messages: Message, **more: Any) -> str:
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **more))


@pytest.mark.parametrize("name", [*SPECIAL, *VISIBLE])
def test_special_tokens_are_single(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    (index,) = tokenizer.encode(f"{name}", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(index) == name
    assert tokenizer.decode([index], skip_special_tokens=True) == ("" if name in SPECIAL else name)


@given(number=st.integers(min_value=0, max_value=10**15))
@settings(max_examples=100)
def test_numbers_are_split_from_the_right_in_threes(tokenizer: PreTrainedTokenizerFast, number: int) -> None:
    digits = str(number)
    expected = f"{number:,}".split(",")
    assert tokenizer.tokenize(digits) == expected
    assert [piece for piece in tokenizer.tokenize(f"{number:,}") if piece != ","] == expected


@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
@settings(max_examples=100)
def test_any_text_round_trips(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_marker_never_merges_with_fence(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("\n```<tool_call>")[-2:] == ["```", "<tool_call>"]
    assert tokenizer.tokenize("\n```\n")[-2:] == ["```", "Ċ"]


@pytest.mark.parametrize("digits", [1, 2])
def test_shorter_number_pieces(digits: int) -> None:
    assert len(build_tokenizer(["a 1"], digits=digits).tokenize("123456")) == 6 // digits


def test_disabled_thinking_renders_empty_thought(tokenizer: PreTrainedTokenizerFast) -> None:
    asked = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert render(tokenizer, user("hi"), add_generation_prompt=True) == asked
    off = render(tokenizer, user("hi"), add_generation_prompt=True, enable_thinking=False)
    assert off == asked + "<think>\n\n</think>\n\n"


def test_thoughts_of_earlier_turns_are_dropped(tokenizer: PreTrainedTokenizerFast) -> None:
    thought = assistant("<think>\nhm\n</think>\n\nyes")
    assert "hm" in render(tokenizer, user("a"), thought)
    later = render(tokenizer, user("a"), thought, user("b"))
    assert "hm" not in later
    assert "<|im_start|>assistant\nyes<|im_end|>" in later


def test_client_tools_are_in_system_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    answer = {"role": "tool", "content": "4"}
    text = render(tokenizer, user("a"), assistant("", tool_calls=[call]), answer, answer, tools=[tool])
    assert text.startswith("<|im_start|>system\n# Tools")
    assert '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>' in text
    assert text.count("<|im_start|>user") == 2, "answers in a row share a turn"
    assert text.count("<tool_response>\n4\n</tool_response>") == 2
