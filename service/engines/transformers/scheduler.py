"""Scheduling of the embedded engine: requests, cache slots and the work of the next step.

First come, first served. Prompts are prefilled in chunks beside the running streams. Pure bookkeeping:
nothing here depends on the model or on threads.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from service.engines.base import FinishReason, PromptLogprob, Sampling, TokenChunk
from service.engines.token_stream import Detokenizer
from service.engines.transformers.grammar import Grammar
from service.engines.transformers.sampling import Draw, History

WORTH_WAITING = 32
"""Number of shared prompt tokens that makes it worth waiting for another sequence that is prefilling them."""


@dataclass(slots=True, eq=False)
class Slot:
    """One row of the KV cache. It holds the keys and values of ``tokens[:length]``, from position 0.

    ``adapter`` is the adapter that computed them; None is the model itself.
    """

    index: int
    tokens: list[int] = field(default_factory=list)
    length: int = 0
    busy: bool = False
    last_used: int = 0
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class SlotAllocation:
    """A slot allocated to a prompt. Its first ``reused`` positions must be copied from ``source``, if set."""

    slot: Slot
    reused: int
    source: Slot | None


class SlotPool:
    """A fixed number of slots, allocated by longest common prefix, then by least recent use. Idle slots are
    the prefix cache."""

    def __init__(self, count: int) -> None:
        self.slots = tuple(Slot(index) for index in range(count))
        self._clock = 0

    def claim(
        self, tokens: list[int], adapter: str | None = None, *, reuse: bool = True
    ) -> SlotAllocation | None:
        """Allocate a free slot to the sequence that starts with the prompt ``tokens`` (stored by reference).

        Only keys and values computed by the same ``adapter`` are reused, and none without ``reuse``.

        A slot is continued in place only if the prompt continues everything it holds. Otherwise the least
        recently used free slot is overwritten and the shared prefix copied into it, so that prompts with the
        same instruction don't destroy each other's cache.

        Return None if no slot is free, or if a running sequence will soon have computed much more of this
        prompt, so that a group of samples of one prompt prefills it once.
        """
        free = [slot for slot in self.slots if not slot.busy]
        if not free:
            return None
        # The last prompt token is always computed: the first sample is drawn from its logits.
        reusable = tokens[:-1]
        shared = {
            slot: common_prefix(slot.tokens, reusable) if reuse and slot.adapter == adapter else 0
            for slot in self.slots
        }
        best = max(
            self.slots, key=lambda slot: (min(shared[slot], slot.length), not slot.busy, slot.last_used)
        )
        reused = min(shared[best], best.length)
        if max(shared.values()) - reused >= WORTH_WAITING:
            return None
        oldest = min(free, key=lambda slot: slot.last_used)
        slot = best if not best.busy and reused == best.length > 0 else oldest
        slot.tokens, slot.length, slot.busy, slot.adapter = tokens, reused, True, adapter
        return SlotAllocation(slot, reused, None if slot is best or reused == 0 else best)

    def release(self, slot: Slot) -> None:
        """Free a slot. Its content stays as prefix cache."""
        self._clock += 1
        slot.tokens = slot.tokens[: slot.length]
        slot.busy, slot.last_used = False, self._clock

    def forget(self) -> None:
        """Invalidate the whole cache. Running sequences are computed again from their tokens."""
        for slot in self.slots:
            slot.length = 0
            if not slot.busy:
                slot.tokens, slot.last_used = [], 0


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix, by bisection over slice comparisons (which run in C)."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle)
    return low


@dataclass(slots=True, eq=False)
class Request:
    """One call of ``generate``. ``tokens`` is the prompt followed by the sampled tokens; the last one has no
    KV yet."""

    tokens: list[int]
    sampling: Sampling
    stop_token_ids: frozenset[int]
    context_length: int
    detokenizer: Detokenizer
    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[TokenChunk | Exception] = field(default_factory=asyncio.Queue)
    grammar: Grammar | None = None
    """Constraint on the reply; None: unconstrained."""
    cancelled: bool = False
    """Set from the event loop; the engine thread reads it before each step."""
    slot: Slot | None = None
    cached_tokens: int = 0
    """Prompt tokens taken from the prefix cache."""
    prompt_logprobs: list[PromptLogprob] = field(default_factory=list)
    """Log-probabilities of the prompt's tokens from the second one on, as far as they are computed."""
    history: History | None = field(init=False)
    """Kept only if something changes the logits."""
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
        """Return this request's next random number in [0, 1), independent of the rest of the batch."""
        return self._random.random()

    def accept(self, draw: Draw, weights_version: int = 0) -> TokenChunk:
        """Append a token sampled with this version of the weights; return its chunk of the stream."""
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
        chunk = TokenChunk((draw.token_id,), text, (draw.logprob,), top, cached, reason, weights_version)
        if first and self.sampling.prompt_logprobs is not None:
            return chunk._replace(prompt_logprobs=tuple(self.prompt_logprobs))
        return chunk

    def scored_positions(self, start: int, stop: int) -> range:
        """Return the positions from ``start`` to ``stop`` whose logits belong to a next token of the
        prompt; empty if the request doesn't want their log-probabilities."""
        if self.sampling.prompt_logprobs is None:
            return range(0)
        return range(start, max(start, min(stop, self._prompt_length - 1)))

    def add_prompt_logprobs(self, positions: range, rows: Sequence[PromptLogprob]) -> None:
        """Add the log-probabilities of the tokens after ``positions``. A prompt that is prefilled again
        replaces them."""
        self.prompt_logprobs[positions.start :] = rows

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
        """Whether the work includes the last token, so that the next one can be sampled."""
        return self.stop == len(self.request.tokens)


class Scheduler:
    """The waiting queue, the running requests and their slots."""

    def __init__(self, *, max_slots: int, prefill_chunk: int) -> None:
        self.pool = SlotPool(max_slots)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._prefill_chunk = prefill_chunk
        self._is_full = False  # the cache had no room for all running requests; none joins them

    @property
    def busy(self) -> bool:
        return bool(self.running or self.waiting)

    def drop_cancelled(self) -> None:
        if any(request.cancelled for request in self.waiting):
            self.waiting = deque(request for request in self.waiting if not request.cancelled)
        for request in [request for request in self.running if request.cancelled]:
            self.finish(request)

    def admit(self) -> Iterator[tuple[Request, SlotAllocation]]:
        """Move waiting requests into slots, in order, while slots are free."""
        while self.waiting and not self._is_full:
            request = self.waiting[0]
            # Log-probabilities of the prompt need the logits of all its tokens.
            reuse = request.sampling.prompt_logprobs is None
            claim = self.pool.claim(request.tokens, request.sampling.adapter, reuse=reuse)
            if claim is None:
                return
            self.waiting.popleft()
            request.slot = claim.slot
            self.running.append(request)
            yield request, claim

    def plan(self) -> list[Work]:
        """Plan one step: one token of every stream, and at most ``prefill_chunk`` prompt tokens, oldest
        request first."""
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
        """Remove a running request and free its slot."""
        self.running.remove(request)
        self._is_full = False
        if request.slot is not None:
            self.pool.release(request.slot)
            request.slot = None

    def make_room(self) -> Slot:
        """Empty a slot, because the KV cache is full: the least recently used idle one, else that of the
        newest request. This request waits until another one ends, and its tokens are then prefilled again.

        Raises:
            RuntimeError: a single request fills the cache.
        """
        idle = [slot for slot in self.pool.slots if not slot.busy and slot.length]
        if idle:
            slot = min(idle, key=lambda slot: slot.last_used)
        elif len(self.running) > 1 and (last := self.running[-1].slot) is not None:
            slot, request = last, self.running[-1]
            self.finish(request)
            self.waiting.appendleft(request)
            self._is_full = True
        else:
            raise RuntimeError("the KV cache is too small for one sequence")
        slot.length, slot.tokens = 0, []
        return slot

    def drain(self) -> list[Request]:
        """Remove and return every request, running or waiting."""
        everyone = [*self.running, *self.waiting]
        for request in list(self.running):
            self.finish(request)
        self.waiting.clear()
        return everyone
