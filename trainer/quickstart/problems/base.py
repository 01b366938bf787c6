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
    answer: int | str
    """The last line that the plan prints."""
    plan: tuple[Block, ...]
    """Empty for a text that has no answer here: the closing is all that is written."""
    closing: str
    """The last sentence; ``{}`` stands for the boxed answer."""
    earlier: tuple[tuple[str, str], ...] = ()
    """Questions and replies before this one."""
    system: str = ""
    """The system message, if any."""
    has_instruction: bool = True
    """Whether code may run. False for a request without deferral, whose prompt has no instruction."""

    @property
    def boxed(self) -> str:
        """What goes into the box: see `in_box`."""
        return in_box(str(self.answer))

    @property
    def held_out(self) -> bool:
        """Decided by the text, operands included: no held-out problem is trained on, whatever the seed."""
        return zlib.crc32(self.text.encode()) % HELD_OUT_SHARE == 0


def in_box(output: str) -> str:
    """The answer that a printed line gives: yes or no for a truth value, ``25`` for ``25.0``."""
    return {"True": "yes", "False": "no"}.get(output, output.removesuffix(".0"))


Family = Callable[[Random], Problem]


def number(rng: Random, low: int = 4, high: int = 9) -> int:
    """A whole number of ``low`` to ``high`` digits, each length alike."""
    digits = rng.randint(low, high)
    return rng.randrange(10 ** (digits - 1), 10**digits)


CLOSINGS: Final = ("The answer is {}.", "So the answer is {}.", "This gives {}.")
