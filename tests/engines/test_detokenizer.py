from __future__ import annotations

import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models

from service.engines.token_stream import DetokenizerFactory
from tests.support.tiny_qwen3 import make_tokenizer

TOKENIZER = make_tokenizer().backend_tokenizer
FACTORY = DetokenizerFactory(TOKENIZER)


def texts(ids: list[int]) -> list[str]:
    detokenizer = FACTORY()
    added = [detokenizer.add(token_id) for token_id in ids]
    return [*added, detokenizer.finish()]


@given(st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1), max_size=40))
def test_streamed_text_equals_decoded_text(ids: list[int]) -> None:
    assert "".join(texts(ids)) == TOKENIZER.decode(ids, skip_special_tokens=False)


@given(st.text(max_size=40))
def test_valid_text_has_no_replacement_characters(text: str) -> None:
    added = texts(TOKENIZER.encode(text, add_special_tokens=False).ids)
    assert "".join(added) == text
    assert "�" in text or not any("�" in piece for piece in added)


def test_emits_a_character_once_complete() -> None:
    ids = TOKENIZER.encode("é🙂", add_special_tokens=False).ids
    assert len(ids) == 6
    assert texts(ids) == ["", "é", "", "", "", "🙂", ""]


def test_incomplete_character_is_replaced_at_the_end() -> None:
    assert texts(TOKENIZER.encode("é", add_special_tokens=False).ids[:1]) == ["", "�"]


def test_special_tokens_have_text() -> None:
    ids = [TOKENIZER.token_to_id(token) for token in ("<tool_call>", "<|im_end|>")]
    assert texts(ids) == ["<tool_call>", "<|im_end|>", ""]


def test_ids_beyond_the_vocabulary_add_nothing() -> None:
    assert texts([TOKENIZER.get_vocab_size() + 5]) == ["", ""]


def test_added_tokens_outside_of_the_byte_alphabet() -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<｜end of text｜>"])
    detokenizer = DetokenizerFactory(tokenizer)()
    assert detokenizer.add(0) == "<｜end of text｜>"


def test_other_decoders_use_the_library() -> None:
    vocabulary = {"<unk>": 0, "▁two": 1, "▁words": 2}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    detokenizer = DetokenizerFactory(tokenizer)()
    assert [detokenizer.add(1), detokenizer.add(2), detokenizer.finish()] == ["two", " words", ""]


def test_run_of_incomplete_characters_does_not_delay_text() -> None:
    half = TOKENIZER.encode("é", add_special_tokens=False).ids[0]
    detokenizer = FACTORY()
    added = [detokenizer.add(half) for _ in range(1000)]
    assert added == ["", *["�"] * 999]
