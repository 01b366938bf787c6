"""A GGUF file as an engine sees it before its weights: tokenizer, limits, end tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from service.common.machine import available_memory
from service.engines.base import EngineError
from service.engines.gguf.vocabulary import load_tokenizer
from service.engines.gguf_metadata import read_metadata
from service.engines.model_config import EngineFiles
from service.engines.token_stream import DetokenizerFactory
from service.engines.tokenizer import HFTokenizer

_END_TOKENS: Final = frozenset(
    ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>", "</s>")
)
"""Control tokens that end a reply in any vocabulary that has them. Files name only one or two."""
_CACHE_BYTES: Final = 2
"""Bytes per value of the KV cache: float16."""


class GGUFFiles(EngineFiles):
    """The metadata of one GGUF file.

    ``context_length`` is at most ``max_context`` and at most ``cache_tokens``.

    Args:
        path: the file; the first one of a model in several files.
        max_context: upper bound on the context, in tokens. Default: the model's own.
        cache_tokens: size of the KV cache of all sequences, in tokens. Default: `default_cache_tokens`.
        sequences: largest number of sequences in the cache.

    Attributes:
        cache_tokens: size of the KV cache in tokens.

    Raises:
        EngineError: the file can't be read, or its tokenizer is not supported.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_context: int | None = None,
        cache_tokens: int | None = None,
        sequences: int = 1,
    ) -> None:
        metadata = read_metadata(path)
        self.tokenizer = HFTokenizer(str(path), load_tokenizer(path, metadata))
        self.detokenizer = DetokenizerFactory(self.tokenizer.backend)
        self.eos_token_ids = _end_tokens(metadata, self.tokenizer)
        self.vocab_size = len(metadata["tokenizer.ggml.tokens"])
        own = _architecture_value(path, metadata, "context_length")
        limit = min(own, max_context or own)
        self.cache_tokens = cache_tokens or default_cache_tokens(path, metadata, limit, sequences)
        self.context_length = min(limit, self.cache_tokens)


MOST_CACHE_TOKENS: Final = 65_536
"""Default size of the KV cache in tokens if there is enough memory."""


def default_cache_tokens(path: Path, metadata: Mapping[str, Any], context: int, sequences: int) -> int:
    """Return the default size of the KV cache in tokens: room for all sequences at full length, but at most
    `MOST_CACHE_TOKENS` (or one sequence at full length, if that is more) and a quarter of the available
    memory."""
    wanted = min(sequences * context, max(MOST_CACHE_TOKENS, context))
    fitting = available_memory() // 4 // _bytes_per_token(path, metadata)
    return max(1, min(wanted, fitting))


def _bytes_per_token(path: Path, metadata: Mapping[str, Any]) -> int:
    """Size of one token's keys and values in the cache."""

    def value(name: str, default: int | None = None) -> int:
        # Some architectures have one value per layer.
        found = _architecture_value(path, metadata, name, default)
        return int(max(found) if isinstance(found, list) else found)

    heads = value("attention.head_count")
    width = value("embedding_length") // heads
    per_head = value("attention.key_length", width) + value("attention.value_length", width)
    return value("block_count") * value("attention.head_count_kv", heads) * per_head * _CACHE_BYTES


def _architecture_value(
    path: Path, metadata: Mapping[str, Any], name: str, default: int | None = None
) -> Any:
    key = f"{metadata.get('general.architecture')}.{name}"
    if (found := metadata.get(key, default)) is None:
        raise EngineError(f"{path} is not a language model: its metadata has no {key}")
    return found


def _end_tokens(metadata: Mapping[str, Any], tokenizer: HFTokenizer) -> frozenset[int]:
    named = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    known = (tokenizer.token_id(token) for token in _END_TOKENS)
    return frozenset(token_id for token_id in (*named, *known) if token_id is not None)
