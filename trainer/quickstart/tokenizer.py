"""A small byte-level BPE tokenizer with Qwen3's special tokens and chat format.

Numbers are split from the right into pieces of up to three digits, one token each. A piece is easier to copy
than single digits, and ``1,234,567`` has the same pieces as ``1234567``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# In Qwen3's order. Decoders that skip special tokens still show those in the second tuple.
SPECIAL: Final = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
VISIBLE: Final = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip

_PIECES: Final = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE: Final = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")


def build_tokenizer(texts: Iterable[str], *, words: int = 700, digits: int = 3) -> PreTrainedTokenizerFast:
    """Return a tokenizer trained on ``texts``.

    Args:
        texts: texts that the model will read and write, without special tokens.
        words: number of merges learned for text that is not a number.
        digits: maximum digits of a number piece, 1 to 3.
    """
    pieces = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES.replace("3}", f"{digits}}}")), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    vocab, merges = _learn_words(texts, pieces, words)
    for length in range(2, digits + 1):
        for piece in map("".join, itertools.product("0123456789", repeat=length)):
            vocab.setdefault(piece, len(vocab))
            # All ways to split the piece, so that every order of merges reaches the whole piece.
            merges += [(piece[:cut], piece[cut:]) for cut in range(1, length)]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in VISIBLE])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",  # noqa: S106
        pad_token="<|endoftext|>",  # noqa: S106
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def _learn_words(
    texts: Iterable[str], pieces: pre_tokenizers.PreTokenizer, words: int
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return vocabulary and merges of BPE over ``texts`` without digits."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pieces
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + words, initial_alphabet=alphabet, min_frequency=2, show_progress=False
    )
    no_digits = str.maketrans("", "", "0123456789")
    learner.train_from_iterator((text.translate(no_digits) for text in texts), trainer)
    vocab: dict[str, int] = learner.get_vocab()
    ordered = {token: i for i, token in enumerate(sorted(vocab, key=vocab.__getitem__))}
    inverse = _merges_of(learner)
    return ordered, inverse


def _merges_of(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(left, right) for left, right in merges]
