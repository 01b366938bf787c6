"""Constrained decoding for the embedded engine with llguidance: JSON schemas, regexes and grammars."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from service.engines.base import JSON_SPACING, InvalidRequestError, StructureKind
from service.engines.tokenizer import HFTokenizer


def is_available() -> bool:
    """Whether llguidance is installed."""
    return find_spec("llguidance") is not None


_NAMES: Final[dict[StructureKind, str]] = {
    "json_schema": "schema",
    "regex": "regular expression",
    "grammar": "grammar",
}


class Grammar:
    """The state of one constrained reply.

    Args:
        matcher: llguidance's state for this reply.
        vocab_size: number of token ids in llguidance's vocabulary.
    """

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._bits = np.zeros((1, (vocab_size + 31) // 32), dtype=np.int32)

    def mask(self, row: Tensor, stops: Collection[int]) -> None:
        """Set the logits in ``row`` [V] of disallowed tokens to minus infinity, in place.

        ``stops`` are the tokens that end the reply: they are allowed once the reply is complete.
        """
        allowed = np.zeros(row.shape[0], dtype=np.bool_)
        if not self._matcher.is_stopped():
            from llguidance.numpy import fill_next_token_bitmask

            fill_next_token_bitmask(self._matcher, self._bits)
            known = np.unpackbits(self._bits[0].view(np.uint8), bitorder="little")[: self._vocab_size]
            allowed[: len(known)] = known[: len(allowed)]
        allowed[list(stops)] = self._matcher.is_stopped() or self._matcher.is_accepting()
        row.masked_fill_(~torch.from_numpy(allowed).to(row.device), float("-inf"))

    def accept(self, token_id: int) -> None:
        """Record a sampled token, which must not be a stop token."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token_id)


class GrammarCompiler:
    """A compiler of constraints. The first call reads the vocabulary, which takes seconds.

    Thread-safe.
    """

    def __init__(self, tokenizer: HFTokenizer) -> None:
        self._tokenizer = tokenizer
        self._vocabulary: Any = None
        self._lock = threading.Lock()

    def compile(self, kind: StructureKind, text: str) -> Grammar:
        """Return a new grammar for one reply.

        Args:
            kind: language of ``text``.
            text: definition of the replies. Those of a JSON schema have the white space of `JSON_SPACING`.

        Raises:
            InvalidRequestError: ``text`` is invalid, or contains something that can't be enforced.
        """
        from llguidance import LLMatcher, grammar_from

        vocabulary = self._read_vocabulary()
        name = _NAMES[kind]
        try:
            if kind == "json_schema":
                grammar = LLMatcher.grammar_from_json_schema(json.loads(text), overrides=JSON_SPACING)
            else:
                grammar = grammar_from(kind, text)
        except ValueError as error:
            raise InvalidRequestError(f"the {name} can't be read: {_first_line(str(error))}") from None
        if message := LLMatcher.validate_grammar(grammar, vocabulary):
            raise InvalidRequestError(f"the {name} can't be enforced: {_first_line(message)}")
        return Grammar(LLMatcher(vocabulary, grammar, log_level=0), vocabulary.vocab_size)

    def _read_vocabulary(self) -> Any:
        from llguidance import LLTokenizer

        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = LLTokenizer(
                    self._tokenizer.backend.to_str(), eos_token=self._tokenizer.eos_token_id
                )
            return self._vocabulary


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:300]
