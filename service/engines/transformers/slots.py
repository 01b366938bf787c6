"""Which row of the KV cache a sequence runs in. Idle rows are the prefix cache. Pure bookkeeping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

WORTH_WAITING = 32
"""Prompt tokens that make it worth waiting for another sequence that is reading the same ones."""


@dataclass(slots=True, eq=False)
class Slot:
    """One row. ``tokens[:length]`` have their keys and values in it, from position 0 on.

    ``adapter`` computed them; None is the model itself.
    """

    index: int
    tokens: list[int] = field(default_factory=list)
    length: int = 0
    busy: bool = False
    last_used: int = 0
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class SlotAllocation:
    """A slot taken for a prompt. Its first ``reused`` positions are to be copied from ``source``, if set."""

    slot: Slot
    reused: int
    source: Slot | None


class SlotPool:
    """A fixed number of slots, handed out by longest common prefix, then by least recent use."""

    def __init__(self, count: int) -> None:
        self.slots = tuple(Slot(index) for index in range(count))
        self._clock = 0

    def claim(self, tokens: list[int], adapter: str | None = None) -> SlotAllocation | None:
        """Take a free slot for the sequence that starts with the prompt ``tokens`` (kept, not copied).

        Only keys and values that the same ``adapter`` computed are reused.

        A slot is gone on with in place only if the prompt goes on from all that it holds. Otherwise the
        least recently used free slot is overwritten, and the shared prefix copied into it: several
        prompts with one instruction don't destroy each other's cache.

        None if no slot is free, or if a running sequence is about to have computed much more of this prompt
        (a group of samples of one prompt reads it once).
        """
        free = [slot for slot in self.slots if not slot.busy]
        if not free:
            return None
        # The last prompt token is always computed: its logits are what the first sample is drawn from.
        reusable = tokens[:-1]
        shared = {
            slot: common_prefix(slot.tokens, reusable) if slot.adapter == adapter else 0
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
        """Give a slot back; what it holds stays as prefix cache."""
        self._clock += 1
        slot.tokens = slot.tokens[: slot.length]
        slot.busy, slot.last_used = False, self._clock

    def forget(self) -> None:
        """Nothing cached is valid any more; running sequences will be computed again from their tokens."""
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
