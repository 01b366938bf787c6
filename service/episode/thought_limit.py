"""Limit the thought of a reply to a number of tokens, and keep constraints on the text out of it.

The limit works the same with every engine and is exact: the engine samples at most the remaining number of
tokens, then the server closes the thought and lets the engine continue. The tokens that close it are forced,
see `TokenChunk.is_forced`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import replace
from enum import Enum, auto
from typing import Final

from service.engines.base import Engine, Sampling, TokenChunk, Tokenizer
from service.episode.reasoning_parser import THINK_CLOSE, THINK_OPEN, opens_thought

CLOSING: Final = f"\n{THINK_CLOSE}\n\n"
"""Text that closes a thought at its limit."""


class _State(Enum):
    START = auto()  # only white space so far: a thought may begin
    OPEN = auto()
    CLOSED = auto()


class ThoughtLimit:
    """The thought of one reply, over all of its turns, and the number of tokens it may still take.

    Args:
        tokenizer: the model's.
        prompt_end: the last characters of the prompt, which may open the thought.
        tokens: maximum number of sampled tokens after ``<think>``; None for no limit.

    Raises:
        ValueError: the model has no token for ``</think>``; see `supports_thought_limit`.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_end: str, tokens: int | None = None) -> None:
        close_id = tokenizer.token_id(THINK_CLOSE)
        if close_id is None:
            raise ValueError(f"the model's tokenizer has no token {THINK_CLOSE!r}")
        self.close_id = close_id
        self._open_id = tokenizer.token_id(THINK_OPEN)
        self._tokenizer = tokenizer
        self._left = tokens
        self._state = _State.START
        if opens_thought(prompt_end):
            self._state = _State.OPEN
        elif prompt_end.rstrip().endswith(THINK_CLOSE):
            self._state = _State.CLOSED

    @property
    def is_open(self) -> bool:
        return self._state is _State.OPEN

    @property
    def is_over(self) -> bool:
        """Whether the thought has ended, or the reply began without one."""
        return self._state is _State.CLOSED

    @property
    def is_used_up(self) -> bool:
        """Whether the thought is open and has no token left."""
        return self.is_open and self._left is not None and self._left <= 0

    def cap(self) -> int | None:
        """Return how many tokens may be sampled before the thought must be checked again; None for any."""
        if self._left is None:
            return None
        return max(self._left, 0) + (self._state is _State.START)  # one more for the tag itself

    def feed(self, ids: Sequence[int]) -> None:
        """Count sampled tokens."""
        for token in ids:
            if self._state is _State.CLOSED:
                return
            if self._state is _State.START:
                if token == self._open_id:
                    self._state = _State.OPEN
                elif self._tokenizer.decode([token]).strip():
                    self._state = _State.CLOSED
            elif token == self.close_id:
                self._state = _State.CLOSED
            elif self._left is not None:
                self._left -= 1

    def open(self) -> TokenChunk:
        """Begin the thought and return the forced tokens."""
        self._state = _State.OPEN
        return self._forced(f"{THINK_OPEN}\n")

    def close(self) -> TokenChunk:
        """End the thought and return the forced tokens."""
        self._state = _State.CLOSED
        return self._forced(CLOSING)

    def space(self) -> TokenChunk:
        """Return the forced white space between a thought that the model closed and a constrained text."""
        return self._forced("\n\n")

    def _forced(self, text: str) -> TokenChunk:
        ids = tuple(self._tokenizer.encode(text, allow_special=True))
        return TokenChunk(ids, text, (0.0,) * len(ids), ((),) * len(ids), is_forced=True)


def supports_thought_limit(tokenizer: Tokenizer) -> bool:
    """Return whether thoughts of this model end with a single token."""
    return tokenizer.token_id(THINK_CLOSE) is not None


async def limit_thought(
    engine: Engine,
    prompt_ids: Sequence[int],
    sampling: Sampling,
    stop_ids: Collection[int],
    thought: ThoughtLimit,
) -> AsyncGenerator[TokenChunk, None]:
    """Sample one turn like ``engine.generate``, with forced chunks where the server writes the tags.

    A constraint of ``sampling`` applies after the thought. With one, the reply always begins with a thought,
    because the constraint could not begin at an unknown token.

    Args:
        engine: samples the tokens.
        prompt_ids: the context.
        sampling: ``max_tokens`` includes forced tokens.
        stop_ids: tokens that end the turn.
        thought: state of the reply's thought.

    Raises:
        EngineError: as ``engine.generate``.
    """
    ids, left, calls = list(prompt_ids), sampling.max_tokens, 0
    is_constrained = sampling.structure is not None
    if is_constrained and not (thought.is_open or thought.is_over):
        chunk = thought.open()
        ids += chunk.ids
        left -= len(chunk.ids)
        yield _ended(chunk, left)
    while True:
        if thought.is_used_up:
            chunk = thought.close()
            left -= len(chunk.ids)
            ids += chunk.ids
            yield _ended(chunk, left)
        if left <= 0:
            return
        call, stops = replace(sampling, max_tokens=left), frozenset(stop_ids)
        if not thought.is_over:
            cap = thought.cap()
            call = replace(call, max_tokens=left if cap is None else min(left, cap)).without_structure()
            stops |= {thought.close_id}
        if calls and sampling.seed is not None:  # the same seed would draw the same numbers again
            call = replace(call, seed=(sampling.seed + 7_919 * calls) % 2**63)
        call = replace(call, min_tokens=min(call.min_tokens, call.max_tokens))
        calls += 1
        sampled = 0
        is_last = False
        async with aclosing(engine.generate(ids, call, stops)) as chunks:
            async for chunk in chunks:
                ids += chunk.ids
                sampled += len(chunk.ids)
                thought.feed(chunk.ids)
                if chunk.finish_reason == "stop" and chunk.ids[-1] in stop_ids:
                    is_last = True
                elif chunk.finish_reason is not None and (
                    sampled == left or (chunk.finish_reason == "length" and sampled < call.max_tokens)
                ):  # the limit of the turn or of the context, and not that of the thought
                    is_last, chunk = True, chunk._replace(finish_reason="length")
                yield chunk if is_last else chunk._replace(finish_reason=None)
        if is_last or not sampled:
            return
        left -= sampled
        if thought.is_over and is_constrained:
            chunk = thought.space()
            ids += chunk.ids
            left -= len(chunk.ids)
            yield _ended(chunk, left)


def _ended(chunk: TokenChunk, left: int) -> TokenChunk:
    return chunk if left > 0 else chunk._replace(finish_reason="length")
