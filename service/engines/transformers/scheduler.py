"""Who runs in the next step: first come first served, prompts in chunks beside the running streams.

One call of ``generate`` as the worker sees it.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from service.engines.base import FinishReason, Sampling, TokenChunk
from service.engines.grammar import Grammar
from service.engines.token_stream import Detokenizer
from service.engines.transformers.sampling import Draw, History
from service.engines.transformers.slots import Slot, SlotAllocation, SlotPool


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


@dataclass(frozen=True, slots=True)
class Work:
    """Compute ``tokens[start:stop]`` of one request in its slot."""

    request: Request
    slot: Slot
    start: int
    stop: int

    @property
    def samples(self) -> bool:
        """It reaches the last token, so the next one can be drawn."""
        return self.stop == len(self.request.tokens)


class Scheduler:
    """The waiting queue, the running requests and their slots. Pure: knows no model and no thread."""

    def __init__(self, *, max_slots: int, prefill_chunk: int) -> None:
        self.pool = SlotPool(max_slots)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._prefill_chunk = prefill_chunk

    @property
    def busy(self) -> bool:
        return bool(self.running or self.waiting)

    def drop_cancelled(self) -> None:
        if any(request.cancelled for request in self.waiting):
            self.waiting = deque(request for request in self.waiting if not request.cancelled)
        for request in [request for request in self.running if request.cancelled]:
            self.finish(request)

    def admit(self) -> Iterator[tuple[Request, SlotAllocation]]:
        """Move waiting requests into slots, in order, while there is room."""
        while self.waiting:
            request = self.waiting[0]
            claim = self.pool.claim(request.tokens, request.sampling.adapter)
            if claim is None:
                return
            self.waiting.popleft()
            request.slot = claim.slot
            self.running.append(request)
            yield request, claim

    def plan(self) -> list[Work]:
        """One token of every stream, and of prompts at most ``prefill_chunk`` tokens, oldest first."""
        budget = self._prefill_chunk
        plan = []
        for request in self.running:
            slot = request.slot
            assert slot is not None  # noqa: S101  # every running request has one
            missing = len(request.tokens) - slot.length
            count = min(missing, budget) if missing > 1 else 1
            if missing > 1:
                budget -= count
            if count > 0:
                plan.append(Work(request, slot, slot.length, slot.length + count))
        return plan

    def finish(self, request: Request) -> None:
        """Take a request out and free its slot."""
        self.running.remove(request)
        if request.slot is not None:
            self.pool.release(request.slot)
            request.slot = None

    def drain(self) -> list[Request]:
        """Take every request out, running or waiting."""
        everyone = [*self.running, *self.waiting]
        for request in list(self.running):
            self.finish(request)
        self.waiting.clear()
        return everyone
