"""The tokenizer of a GGUF file.

A file that `service.engines.gguf.export` wrote contains the checkpoint's own ``tokenizer.json``. For other
files, the same tokenizer is built from llama.cpp's metadata. ``FILE.tokenizer.json`` beside the file
replaces both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from service.engines.base import EngineError

SUFFIX: Final = ".tokenizer.json"
"""Appended to a file's name: a tokenizer that replaces the one in the file."""
HF_JSON: Final = "tokenizer.huggingface.json"
"""The key of the checkpoint's ``tokenizer.json`` in the metadata."""

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # llama.cpp's kinds of tokens

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END = r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2: Final = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+{_END}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+{_END}"
)
LLAMA3: Final = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+{_END}"
GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PATTERNS: Final[dict[str, str]] = {
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), QWEN2),
    "qwen35": _QWEN35,
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), LLAMA3),
    **dict.fromkeys(("gpt-2", "phi-2"), GPT2),
}
"""Rules that split the text before the merges, by llama.cpp's name of the pre-tokenizer."""


def load_tokenizer(path: Path, metadata: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Return the tokenizer of the GGUF file ``path``, with its chat template and its named special tokens.

    Raises:
        EngineError: the vocabulary is of an unsupported kind, or a tokenizer can't be read.
    """
    beside = path.with_name(path.name + SUFFIX)
    try:
        if beside.is_file():
            backend = Tokenizer.from_file(str(beside))
        elif HF_JSON in metadata:
            backend = Tokenizer.from_str(metadata[HF_JSON])
        else:
            backend = _build(path, metadata)
    except EngineError:
        raise
    except Exception as error:  # the library raises no narrower type
        raise EngineError(f"the tokenizer of {path} can't be read: {error}") from error
    names = {
        f"{name}_token": backend.id_to_token(metadata[f"tokenizer.ggml.{key}_token_id"])
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        if f"tokenizer.ggml.{key}_token_id" in metadata
    }
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in names.items() if token is not None},
    )


def _build(path: Path, metadata: Mapping[str, Any]) -> Tokenizer:
    """Build a byte-level BPE tokenizer from llama.cpp's metadata."""
    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if model != "gpt2" or pre not in _PATTERNS:
        raise EngineError(
            f"{path}: the tokenizer ({model}, {pre}) is not supported: copy the tokenizer.json of the "
            f"original checkpoint to {path.name}{SUFFIX} beside it"
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    kinds: list[int] = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    # Without gaps between the ids. No merge leads to a control token or to an unused token.
    used = max(token_id for token_id, kind in enumerate(kinds) if kind != _UNUSED) + 1
    vocabulary = {token: token_id for token_id, token in enumerate(tokens[:used])}
    pattern = _PATTERNS[pre]
    merges = [_split(merge) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=pattern == LLAMA3))
    if pattern == QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    return tokenizer


def _split(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def pattern_name(pre_tokenizer: Mapping[str, Any] | None) -> str | None:
    """Return llama.cpp's name of a byte-level pre-tokenizer, given as in ``tokenizer.json``; None if it has
    none."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}:
            return "gpt-2"
        case {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": regex}}, _]}:
            return next((name for name, pattern in _PATTERNS.items() if pattern == regex), None)
    return None
