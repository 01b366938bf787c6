"""Who runs in the next step: first come first served, prompts in chunks beside the running streams."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from service.engines.request import Request
from service.engines.slots import Claim, Slot, SlotPool


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

    def admit(self) -> Iterator[tuple[Request, Claim]]:
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
