"""Types and helpers of word problems."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from random import Random

Answer = int | float | str | Fraction
Step = tuple[str, str, str]
"""Reason, code, and the variable that the code sets (empty for the last step)."""
Draft = tuple[str, Answer, list[Step], str]
"""Question, answer, steps of the plan, and the last sentence with ``{}`` for the boxed answer."""
Kind = Callable[[Random], Draft]


def pick(rng: Random, *wordings: str) -> str:
    """Return one of the wordings."""
    return rng.choice(wordings)


def signed(value: int) -> str:
    """Return ``+ 3`` or ``- 3``."""
    return f"+ {value}" if value >= 0 else f"- {-value}"
