"""Types and helpers of word problems."""

from __future__ import annotations

import re
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


def tidy_code(code: str) -> str:
    """Return ``a - 3`` for ``a + (-3)`` and the like."""
    code = re.sub(r"(?<=[+*-] )\((\d+)\)", r"\1", code)
    return re.sub(r"([+-]) \(-(\d+)\)", lambda m: f"{'-' if m[1] == '+' else '+'} {m[2]}", code)


def tidy_terms(question: str) -> str:
    """Return ``x`` for ``1x``, and nothing for ``+ 0x``."""
    question = re.sub(r" [+-] 0(?:[xy](?:\^2)?|a_\{n-2\})?(?=[ $)|=.,])", "", question)
    return re.sub(r"(?<![\d.])1(?=[xyi]|a_)", "", question)


def printed(answer: Answer) -> int | str:
    """Return the answer as Python prints it."""
    return answer if isinstance(answer, int) else str(answer)
