from __future__ import annotations

from service.api.chat.choice_builder import MIN_LOGPROB, logprob_item
from service.engines.base import TokenChunk, TopLogprob
from tests.support.char_tokenizer import CharTokenizer


def test_token_with_alternatives() -> None:
    chunk = TokenChunk((ord("é"),), "é", (-0.5,), top_logprobs=((TopLogprob(ord("x"), float("-inf")),),))
    assert logprob_item(chunk, 0, CharTokenizer()) == {
        "token": "é",
        "logprob": -0.5,
        "bytes": [195, 169],
        "top_logprobs": [{"token": "x", "logprob": MIN_LOGPROB, "bytes": [120]}],
    }


def test_bytes_of_half_a_character_are_unknown() -> None:
    item = logprob_item(TokenChunk((0xFFFD,), "", (-1.0,)), 0, CharTokenizer())
    assert (item["bytes"], item["top_logprobs"]) == (None, [])
