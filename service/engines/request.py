"""One call of ``generate`` as the worker sees it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

from service.engines.base import FinishReason, Sampling, TokenChunk
from service.engines.detokenizer import Detokenizer
from service.engines.grammar import Grammar
from service.engines.penalties import History
from service.engines.sampling import Draw
from service.engines.slots import Slot


@dataclass(slots=True, eq=False)
class Request:
    """``tokens`` is the prompt and, behind it, what has been sampled. The last sample has no KV yet."""

    tokens: list[int]
    sampling: Sampling
    stop_token_ids: frozenset[int]
    context_length: int
    detokenizer: Detokenizer
    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[TokenChunk | Exception] = field(default_factory=asyncio.Queue)
    grammar: Grammar | None = None
    """What the reply may still write; None: anything."""
    cancelled: bool = False
    """Set from the event loop, read by the worker before each step."""
    slot: Slot | None = None
    cached_tokens: int = 0
    """Of the prompt, taken from the prefix cache."""
    history: History | None = field(init=False)
    """Kept only where something changes the logits."""
    _prompt_length: int = field(init=False)
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._prompt_length = len(self.tokens)
        changes_logits = self.sampling.has_penalties or self.grammar is not None
        stops = tuple(self.stop_token_ids)
        self.history = (
            History(frozenset(self.tokens), Counter(), stops, self.grammar) if changes_logits else None
        )
        # The prompt's length goes into the seed: the turns of one episode, all with one seed, must not
        # draw the same numbers again. A string seed is hashed, so near seeds are unrelated.
        seed = self.sampling.seed
        self._random = random.Random(None if seed is None else f"{seed}:{self._prompt_length}")  # noqa: S311

    def uniform(self) -> float:
        """The next random number in [0, 1) of this request alone, whatever shares the batch."""
        return self._random.random()

    def accept(self, draw: Draw) -> TokenChunk:
        """Append a sampled token and say what it adds."""
        first = len(self.tokens) == self._prompt_length
        self.tokens.append(draw.token_id)
        if self.history is not None:
            self.history.sampled[draw.token_id] += 1
        if self.grammar is not None and draw.token_id not in self.stop_token_ids:
            self.grammar.accept(draw.token_id)
        reason = self._finish_reason(draw.token_id)
        text = self.detokenizer.add(draw.token_id)
        if reason is not None:
            text += self.detokenizer.finish()
        top = (draw.top_logprobs,) if self.sampling.top_logprobs else ()
        cached = self.cached_tokens if first else None
        return TokenChunk((draw.token_id,), text, (draw.logprob,), top, cached, reason)

    def _finish_reason(self, token_id: int) -> FinishReason | None:
        if token_id in self.stop_token_ids:
            return "stop"
        generated = len(self.tokens) - self._prompt_length
        full = len(self.tokens) >= self.context_length
        return "length" if full or generated >= self.sampling.max_tokens else None
