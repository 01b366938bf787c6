"""What a problem is, and what all families draw from."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

HELD_OUT_SHARE: Final = 16
"""One problem in this many is never trained on."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block and the reasoning before it."""

    reason: str
    code: str
    run: bool = False
    """Followed by the execute marker. A delayed block is not."""
    name: str = ""
    """The variable that a delayed block sets: what it prints where it is run at once instead."""
    hopeless: bool = False
    """Would run for minutes, so it is not tried while traces are made: it ends in a timeout."""


@dataclass(frozen=True, slots=True)
class Problem:
    family: str
    text: str
    answer: int
    plan: tuple[Block, ...]
    closing: str
    """The last sentence; ``{}`` stands for the boxed answer."""

    @property
    def held_out(self) -> bool:
        """Decided by the text, operands included: no held-out problem is trained on, whatever the seed."""
        return zlib.crc32(self.text.encode()) % HELD_OUT_SHARE == 0


Family = Callable[[Random], Problem]


def number(rng: Random, low: int = 4, high: int = 9) -> int:
    """A whole number of ``low`` to ``high`` digits, each length alike."""
    digits = rng.randint(low, high)
    return rng.randrange(10 ** (digits - 1), 10**digits)


CLOSINGS: Final = ("The answer is {}.", "So the answer is {}.", "This gives {}.")
