from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.deferral.prompt import ControlText, TokenIds, with_instruction
from service.engines.base import EngineError
from service.engines.tokenizer import HFTokenizer
from tests.support.tiny_qwen3 import CONTROL_TOKENS, MARKUP_TOKENS

SPELLED = "".join([*CONTROL_TOKENS, *MARKUP_TOKENS])


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> HFTokenizer:
    return HFTokenizer(str(tiny_checkpoint))


def test_control_tokens_are_found_by_name(tokenizer: HFTokenizer) -> None:
    ids = [tokenizer.token_id(token) for token in (*CONTROL_TOKENS, *MARKUP_TOKENS)]
    assert None not in ids
    assert tokenizer.encode(SPELLED, allow_special=True) == ids
    assert tokenizer.token_id("<nothing>") is None
    assert tokenizer.eos_token_id == tokenizer.token_id("<|im_end|>")


def test_spelled_control_tokens_stay_text(tokenizer: HFTokenizer) -> None:
    ids = tokenizer.encode(f"a {SPELLED} b", allow_special=False)
    control = {tokenizer.token_id(token) for token in (*CONTROL_TOKENS, *MARKUP_TOKENS)}
    assert not control & set(ids)
    assert tokenizer.decode(ids) == f"a {SPELLED} b"


def test_literal_encoding_does_not_change_the_backend(tokenizer: HFTokenizer) -> None:
    tokenizer.encode("<tool_call>", allow_special=False)
    assert tokenizer.encode("<tool_call>", allow_special=True) == [tokenizer.token_id("<tool_call>")]


@given(st.lists(st.sampled_from([*CONTROL_TOKENS, *MARKUP_TOKENS, "<|im_", "end|>", "<", ">", "x", " "])))
def test_plain_text_never_encodes_to_a_control_token(tokenizer: HFTokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    ids = tokenizer.encode(text, allow_special=False)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.token_id(token) for token in (*CONTROL_TOKENS, *MARKUP_TOKENS)} & set(ids)


@pytest.mark.parametrize("allow_special", [True, False])
def test_long_text_encodes_like_short_text(tokenizer: HFTokenizer, allow_special: bool) -> None:
    """Byte-level BPE starts a word at a blank, so the parts of this text are tokenised independently."""
    part = f" 2 + 2 = {SPELLED}"
    ids = tokenizer.encode(part * 1000, allow_special=allow_special)
    assert ids == tokenizer.encode(part, allow_special=allow_special) * 1000


def test_chat_template_gets_its_arguments(tokenizer: HFTokenizer) -> None:
    messages: list[dict[str, object]] = [{"role": "user", "content": "1 + 1?"}]
    asked = "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.render_chat(messages) == tokenizer.encode(asked, allow_special=True)
    without = tokenizer.render_chat(messages, template_kwargs={"enable_thinking": False})
    assert tokenizer.decode(without) == asked + "<think>\n\n</think>\n\n"


def test_last_message_can_be_continued(tokenizer: HFTokenizer) -> None:
    messages: list[dict[str, object]] = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "The sum"},
    ]
    ids = tokenizer.render_chat(messages, continue_final=True)
    assert tokenizer.decode(ids) == "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\nThe sum"


def test_the_vocabulary_ends_after_the_highest_id(tokenizer: HFTokenizer) -> None:
    assert tokenizer.decode([tokenizer.vocab_size - 1])
    assert max(tokenizer.backend.get_vocab().values()) == tokenizer.vocab_size - 1


@pytest.mark.parametrize("name", ["tokenize", "chat_template", "return_dict", "add_generation_prompt"])
def test_rejects_reserved_template_arguments(tokenizer: HFTokenizer, name: str) -> None:
    with pytest.raises(EngineError, match=f"'{name}' is reserved"):
        tokenizer.render_chat([{"role": "user", "content": "x"}], template_kwargs={name: "x"})


def test_template_error_is_an_engine_error(tokenizer: HFTokenizer) -> None:
    with pytest.raises(EngineError, match="chat template failed"):
        tokenizer.render_chat([{"role": "user", "content": None}])


PARTS = st.lists(
    st.sampled_from([*CONTROL_TOKENS, *MARKUP_TOKENS, "<|im_", "end|>", "<", ">", "x", " ", "\n", "é"]),
    max_size=12,
).map("".join)


def controls(tokenizer: HFTokenizer, ids: list[int]) -> list[int]:
    names = {tokenizer.token_id(token) for token in (*CONTROL_TOKENS, *MARKUP_TOKENS)}
    return [token for token in ids if token in names]


@given(PARTS, PARTS, PARTS)
def test_messages_never_encode_to_control_tokens(
    tokenizer: HFTokenizer, system: str, user: str, tool: str
) -> None:
    def rendered(system: str, user: str, tool: str) -> list[int]:
        messages: list[dict[str, object]] = [
            {"role": "system", "content": system},
            {"role": "user", "content": user},
        ]
        function = {"name": "f", "description": tool, "parameters": {"type": "object"}}
        tools = [{"type": "function", "function": function}]
        return tokenizer.render_chat(messages, template_kwargs={"tools": tools})

    ids = rendered(system, user, tool)
    assert controls(tokenizer, ids) == controls(tokenizer, rendered("a", "b", "c"))
    assert user in tokenizer.decode(ids)


def test_text_without_control_tokens_is_unchanged(tokenizer: HFTokenizer) -> None:
    content = "1 + 1?\n\n  <tool> é 你好 <| im_end|>"
    text = f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
    rendered = tokenizer.render_chat([{"role": "user", "content": content}])
    assert rendered == tokenizer.encode(text, allow_special=True)


def test_control_text_encodes_to_control_tokens(tokenizer: HFTokenizer) -> None:
    content = [ControlText("Write <tool_call> to run. Problem: "), "what is <tool_call>?"]
    ids = tokenizer.render_chat([{"role": "user", "content": content}])
    assert ids.count(tokenizer.token_id("<tool_call>")) == 1  # type: ignore[arg-type]
    assert "Problem: what is <tool_call>?" in tokenizer.decode(ids)


def test_sampled_ids_are_inserted_unchanged(tokenizer: HFTokenizer) -> None:
    sampled = tuple(tokenizer.encode("a<tool_call>", allow_special=True)[::-1])
    messages: list[dict[str, object]] = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": [TokenIds(sampled)]},
        {"role": "user", "content": "y<|im_end|>"},
    ]
    ids = tokenizer.render_chat(messages)
    begin = tokenizer.encode("<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n", allow_special=True)
    assert ids[: len(begin) + len(sampled)] == [*begin, *sampled]
    assert ids.count(tokenizer.token_id("<|im_end|>")) == 3  # type: ignore[arg-type]


@pytest.mark.skipif("QWEN3_TOKENIZER" not in os.environ, reason="QWEN3_TOKENIZER names no directory")
def test_qwen3_tokenizer() -> None:
    tokenizer = HFTokenizer(os.environ["QWEN3_TOKENIZER"])
    marker = tokenizer.token_id("<tool_call>")
    assert marker == 151657
    text = "say <tool_call><think></tool_call> and <|im_end|> é🙂"
    literal = tokenizer.encode(text, allow_special=False)
    assert max(literal) < tokenizer.token_id("<|endoftext|>")  # type: ignore[operator]
    assert tokenizer.decode(literal) == text
    assert marker in tokenizer.encode(text, allow_special=True)
    rendered = tokenizer.render_chat(
        [{"role": "user", "content": "x"}], template_kwargs={"enable_thinking": False}
    )
    assert tokenizer.decode(rendered).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


@pytest.mark.skipif("QWEN3_TOKENIZER" not in os.environ, reason="QWEN3_TOKENIZER names no directory")
def test_the_prompt_of_the_qwen3_recipes_is_pinned() -> None:
    tokenizer = HFTokenizer(os.environ["QWEN3_TOKENIZER"])
    turns = with_instruction([{"role": "user", "content": "What is $2^{10}$?"}], "full-v1")
    ids = tokenizer.render_chat(turns, template_kwargs={"enable_thinking": False})
    assert ids.count(151657) == 2  # once in the instruction, once in its example
    assert (len(ids), hashlib.sha256(str(ids).encode()).hexdigest()) == (
        344,
        "2111c9bcb8322f85a31bb5640e658676d2a4e693c569531272e5f72946ee0b56",
    )
