"""For engines whose model runs elsewhere: ids come in pieces; text and counters are added here."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from service.engines.base import EngineStats, FinishReason, TokenChunk, TopLogprob
from service.engines.detokenizer import Detokenizer


@dataclass(slots=True)  # not frozen: one is made for every token, and that would take four times as long
class Piece:
    """New tokens of one call. ``logprobs`` is None where they were not asked for."""

    ids: Sequence[int]
    logprobs: Sequence[float] | None = None
    top_logprobs: tuple[tuple[TopLogprob, ...], ...] = ()
    cached_tokens: int | None = None
    finish_reason: FinishReason | None = None


def likeliest(logprobs: Mapping[int, float], top: int) -> tuple[TopLogprob, ...]:
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
