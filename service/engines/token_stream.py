"""For engines whose model runs elsewhere: ids come in pieces; text and counters are added here.

Token ids to text, one token at a time.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

import tokenizers
from tokenizers import decoders
from tokenizers.decoders import DecodeStream

from service.engines.base import EngineStats, FinishReason, TokenChunk, TopLogprob


class Detokenizer(Protocol):
    """State of one stream. The texts of all calls, joined, are the decoded text of all ids."""

    def add(self, token_id: int) -> str:
        """The text that this id completes; empty in the middle of a UTF-8 character."""
        ...

    def finish(self) -> str:
        """What is left at the end: a replacement character where the last character is incomplete."""
        ...


class DetokenizerFactory:
    """Makes detokenizers for one tokenizer. What depends on the vocabulary alone is computed once."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)
        self._table = _byte_table(tokenizer) if byte_level else None

    def __call__(self) -> Detokenizer:
        return _Stream(self._tokenizer) if self._table is None else _Bytes(self._table)


class _Bytes:
    """Byte-level BPE: every id stands for bytes, so a UTF-8 decoder is all the state there is."""

    def __init__(self, table: list[bytes]) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_between = True

    def add(self, token_id: int) -> str:
        # A model's embedding may be padded beyond the tokenizer's vocabulary; those ids have no text.
        added = self._table[token_id] if token_id < len(self._table) else b""
        if self._is_between and added.isascii():  # nearly always, and a third of the decoder's time
            return added.decode("ascii")
        text = self._decoder.decode(added)
        self._is_between = not self._decoder.getstate()[0]
        return text

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _Stream:
    """Any other tokenizer, through the tokenizers library's own stream."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=False)

    def add(self, token_id: int) -> str:
        return self._stream.step(self._tokenizer, token_id) or ""

    def finish(self) -> str:
        return ""


def _byte_table(tokenizer: tokenizers.Tokenizer) -> list[bytes]:
    """Bytes of every id as the ByteLevel decoder reads it: by character, or as UTF-8 where one is foreign."""
    byte_of = _byte_of_character()
    table = []
    for token_id in range(tokenizer.get_vocab_size(with_added_tokens=True)):
        token = tokenizer.id_to_token(token_id) or ""
        known = all(character in byte_of for character in token)
        table.append(bytes(byte_of[character] for character in token) if known else token.encode())
    return table


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, every other byte for a character from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


@dataclass(slots=True)  # not frozen: one is made for every token, and that would take four times as long
class Piece:
    """New tokens of one call. ``logprobs`` is None where they were not asked for."""

    ids: Sequence[int]
    logprobs: Sequence[float] | None = None
    top_logprobs: tuple[tuple[TopLogprob, ...], ...] = ()
    cached_tokens: int | None = None
    finish_reason: FinishReason | None = None


def top_logprobs(logprobs: Mapping[int, float], top: int) -> tuple[TopLogprob, ...]:
    """The ``top`` first of one position. vLLM adds the sampled token where it is not among them."""
    best = sorted(logprobs.items(), key=lambda entry: -entry[1])[:top]
    return tuple(TopLogprob(token_id, logprob) for token_id, logprob in best)


class Tally:
    """Counters since start, of an engine that does not see the scheduler. No token yet: it waits."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generated_tokens = 0
        self.running = 0
        self.waiting = 0

    def stats(self) -> EngineStats:
        return EngineStats(
            self.prompt_tokens, self.cached_tokens, self.generated_tokens, self.running, self.waiting
        )


async def chunks(
    pieces: AsyncGenerator[Piece, None], detokenizer: Detokenizer, tally: Tally, prompt_tokens: int
) -> AsyncGenerator[TokenChunk, None]:
    """The pieces of one call as `TokenChunk`s, counted. Closing it closes ``pieces``."""
    has_begun = False
    tally.waiting += 1
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                if not has_begun:
                    has_begun = True
                    tally.waiting, tally.running = tally.waiting - 1, tally.running + 1
                    tally.prompt_tokens += prompt_tokens
                tally.generated_tokens += len(piece.ids)
                tally.cached_tokens += piece.cached_tokens or 0
                yield _chunk(piece, detokenizer)
    finally:
        if has_begun:
            tally.running -= 1
        else:
            tally.waiting -= 1


def _chunk(piece: Piece, detokenizer: Detokenizer) -> TokenChunk:
    ids = tuple(piece.ids)
    text = "".join(map(detokenizer.add, ids))
    if piece.finish_reason is not None:
        text += detokenizer.finish()
    return TokenChunk(
        ids,
        text,
        (math.nan,) * len(ids) if piece.logprobs is None else tuple(piece.logprobs),
        piece.top_logprobs,
        piece.cached_tokens,
        piece.finish_reason,
    )
