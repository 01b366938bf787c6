from __future__ import annotations

import os
from functools import lru_cache

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from service.engines.tokenizer import SegmentEncoder, encode
from tests.support.tiny_qwen3 import CONTROL_TOKENS, MARKUP_TOKENS, make_tokenizer

PIECES = st.sampled_from(
    [*CONTROL_TOKENS, *MARKUP_TOKENS, "<tool_call", "<|im_", " ", "\n\n", "x = 12", "é", "e\u0301"]
)


def backend() -> tokenizers.Tokenizer:
    tokenizer: tokenizers.Tokenizer = make_tokenizer().backend_tokenizer
    return tokenizer


def whole(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


class Counting:
    """A tokenizer that counts its calls."""

    def __init__(self) -> None:
        self._tokenizer = backend()
        self.texts: list[str] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._tokenizer, name)

    def encode(self, text: str, **options: bool) -> tokenizers.Encoding:
        self.texts.append(text)
        return self._tokenizer.encode(text, **options)


CUT = backend()
CUT.normalizer = normalizers.NFC()
ENCODER = SegmentEncoder(CUT)


@given(st.lists(st.one_of(PIECES, st.text(max_size=6)), max_size=12))
def test_segment_ids_equal_those_of_the_whole_text(parts: list[str]) -> None:
    text = "".join(parts)
    assert ENCODER.encode(text) == whole(CUT, text) == ENCODER.encode(text)


@lru_cache(1)
def qwen3() -> tuple[tokenizers.Tokenizer, SegmentEncoder]:
    tokenizer = tokenizers.Tokenizer.from_file(os.environ["QWEN3_TOKENIZER"] + "/tokenizer.json")
    return tokenizer, SegmentEncoder(tokenizer)


@pytest.mark.skipif("QWEN3_TOKENIZER" not in os.environ, reason="QWEN3_TOKENIZER names no directory")
@given(st.lists(st.one_of(PIECES, st.text(max_size=6)), max_size=12))
def test_segment_ids_with_the_qwen3_tokenizer(parts: list[str]) -> None:
    tokenizer, encoder = qwen3()
    text = "".join(parts)
    assert encoder.encode(text) == whole(tokenizer, text)


def test_segments_are_cached() -> None:
    counting = Counting()
    encoder = SegmentEncoder(counting)  # type: ignore[arg-type]
    encoder.encode("<|im_start|>user\n1 + 1?<|im_end|>\n")
    encoder.encode("<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n2")
    assert counting.texts == ["user\n1 + 1?", "\n", "assistant\n2"]


def test_long_segments_are_not_cached() -> None:
    encoder = SegmentEncoder(CUT)
    text = "x = 12; " * 2000
    assert encoder.encode(text) == encode(CUT, text) == whole(CUT, text)
    assert encoder._remember.cache_info().currsize == 0


def test_longest_control_token_wins() -> None:
    tokenizer = backend()
    tokenizer.add_special_tokens(["<a>", "<a>b"])
    assert SegmentEncoder(tokenizer).encode("x<a>b<a>") == whole(tokenizer, "x<a>b<a>")


@pytest.mark.parametrize("flag", ["single_word", "lstrip", "rstrip", "normalized"])
def test_no_splitting_with_context_dependent_control_tokens(flag: str) -> None:
    tokenizer = backend()
    tokenizer.add_tokens([AddedToken("<a>", **{"normalized": False, flag: True})])
    assert SegmentEncoder(tokenizer).encode("x <a> <a>y") == whole(tokenizer, "x <a> <a>y")


def test_no_splitting_with_add_prefix_space() -> None:
    words = models.WordLevel({"<unk>": 0, "▁two": 1, "two": 2}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens(["<a>"])
    assert SegmentEncoder(tokenizer).encode("two<a>two") == whole(tokenizer, "two<a>two") == [1, 3, 2]
