"""Streaming detokenization, and the token stream of engines whose model runs outside this process.

These engines receive token ids; `to_chunks` adds text and counters.
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

from service.engines.base import EngineStats, FinishReason, PromptLogprob, TokenChunk, TopLogprob


class Detokenizer(Protocol):
    """Decoder of one stream. The concatenated results of all calls are the decoded text of all ids."""

    def add(self, token_id: int) -> str:
        """Return the text that this id completes; empty inside a UTF-8 character."""
        ...

    def finish(self) -> str:
        """Return the remaining text: a replacement character if the last character is incomplete."""
        ...


class DetokenizerFactory:
    """A factory of detokenizers for one tokenizer. Computes tables that depend only on the vocabulary
    once."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)
        self._table = _byte_table(tokenizer) if byte_level else None

    def __call__(self) -> Detokenizer:
        return _Stream(self._tokenizer) if self._table is None else _Bytes(self._table)


class _Bytes:
    """Detokenizer of byte-level BPE: every id stands for bytes, so the only state is a UTF-8 decoder."""

    def __init__(self, table: list[bytes]) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_between = True

    def add(self, token_id: int) -> str:
        # A model's embedding may be padded beyond the tokenizer's vocabulary; those ids have no text.
        added = self._table[token_id] if token_id < len(self._table) else b""
        if self._is_between and added.isascii():  # the common case, in a third of the decoder's time
            return added.decode("ascii")
        text = self._decoder.decode(added)
        self._is_between = not self._decoder.getstate()[0]
        return text

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _Stream:
    """Detokenizer of any other tokenizer, using the stream of the tokenizers library."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=False)

    def add(self, token_id: int) -> str:
        return self._stream.step(self._tokenizer, token_id) or ""

    def finish(self) -> str:
        return ""


def _byte_table(tokenizer: tokenizers.Tokenizer) -> list[bytes]:
    """Bytes of every id as the ByteLevel decoder reads it: by character, or as UTF-8 if a character is not
    in its alphabet."""
    byte_of = _byte_of_character()
    table = []
    for token_id in range(tokenizer.get_vocab_size(with_added_tokens=True)):
        token = tokenizer.id_to_token(token_id) or ""
        known = all(character in byte_of for character in token)
        table.append(bytes(byte_of[character] for character in token) if known else token.encode())
    return table


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 represents itself, and characters from U+0100 represent the other
    bytes."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


@dataclass(slots=True)  # not frozen: created for every token, and frozen takes four times as long
class SampledTokens:
    """New tokens of one call, without text. ``logprobs`` is None if they were not requested."""

    ids: Sequence[int]
    logprobs: Sequence[float] | None = None
    top_logprobs: tuple[tuple[TopLogprob, ...], ...] = ()
    cached_tokens: int | None = None
    finish_reason: FinishReason | None = None
    prompt_logprobs: tuple[PromptLogprob, ...] = ()


def top_logprobs(logprobs: Mapping[int, float], top: int) -> tuple[TopLogprob, ...]:
    """Return the ``top`` most likely tokens of one position. vLLM also lists the sampled token if it is not
    among them."""
    best = sorted(logprobs.items(), key=lambda entry: -entry[1])[:top]
    return tuple(TopLogprob(token_id, logprob) for token_id, logprob in best)


def prompt_logprob(logprobs: Mapping[int, float], token_id: int, top: int) -> PromptLogprob:
    """Return the log-probability of a prompt's token; vLLM reports it beside the most likely ones."""
    return PromptLogprob(logprobs[token_id], top_logprobs(logprobs, top))


class EngineCounters:
    """Counters since start, for engines without access to the scheduler. A call without a token counts as
    waiting."""

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


async def to_chunks(
    tokens: AsyncGenerator[SampledTokens, None],
    detokenizer: Detokenizer,
    counters: EngineCounters,
    prompt_tokens: int,
) -> AsyncGenerator[TokenChunk, None]:
    """Convert one call's tokens to `TokenChunk`s and count them. Closing the generator closes ``tokens``."""
    has_begun = False
    counters.waiting += 1
    try:
        async with aclosing(tokens):
            async for part in tokens:
                if not has_begun:
                    has_begun = True
                    counters.waiting, counters.running = counters.waiting - 1, counters.running + 1
                    counters.prompt_tokens += prompt_tokens
                counters.generated_tokens += len(part.ids)
                counters.cached_tokens += part.cached_tokens or 0
                yield _chunk(part, detokenizer)
    finally:
        if has_begun:
            counters.running -= 1
        else:
            counters.waiting -= 1


def _chunk(part: SampledTokens, detokenizer: Detokenizer) -> TokenChunk:
    ids = tuple(part.ids)
    text = "".join(map(detokenizer.add, ids))
    if part.finish_reason is not None:
        text += detokenizer.finish()
    return TokenChunk(
        ids,
        text,
        (math.nan,) * len(ids) if part.logprobs is None else tuple(part.logprobs),
        part.top_logprobs,
        part.cached_tokens,
        part.finish_reason,
        prompt_logprobs=part.prompt_logprobs,
    )
