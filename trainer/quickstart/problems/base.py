"""Practice problems with the plans that solve them, and helpers for their families."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

HELD_OUT_SHARE: Final = 16
"""One in this many problems is held out from training."""


@dataclass(frozen=True, slots=True)
class PlanBlock:
    """A code block of a plan, with the reasoning before it."""

    reason: str
    code: str
    run: bool = False
    """True if the execute marker follows. False for a delayed block."""
    name: str = ""
    """The variable that a delayed block sets; printed if the block runs immediately instead."""
    times_out: bool = False
    """True for code that would run for minutes. Traces show a timeout without running it."""


@dataclass(frozen=True, slots=True)
class PracticeProblem:
    """A question with its answer and the plan that finds it."""

    family: str
    text: str
    answer: int | str
    """The last line printed by the plan."""
    plan: tuple[PlanBlock, ...]
    """Empty for a text without an answer: the reply is only ``closing``."""
    closing: str
    """The last sentence, with ``{}`` as placeholder for the boxed answer."""
    earlier: tuple[tuple[str, str], ...] = ()
    """Earlier (question, reply) pairs of the conversation."""
    system: str = ""
    """The system message; empty for none."""
    uses_search: bool = False
    """Whether the plan calls the function ``search``, which the prompt then lists."""
    has_instruction: bool = True
    """False for a request without deferral: its prompt has no instruction, and no code runs."""

    @property
    def boxed(self) -> str:
        """The answer as it is boxed; see `in_box`."""
        return in_box(str(self.answer))

    @property
    def held_out(self) -> bool:
        """True if the problem is held out. Depends only on the text, not on the seed."""
        return zlib.crc32(self.text.encode()) % HELD_OUT_SHARE == 0


def in_box(output: str) -> str:
    """Return the answer for a printed line: yes or no for a truth value, ``25`` for ``25.0``."""
    return {"True": "yes", "False": "no"}.get(output, output.removesuffix(".0"))


Family = Callable[[Random], PracticeProblem]


def number(rng: Random, low: int = 4, high: int = 9) -> int:
    """Return a whole number of ``low`` to ``high`` digits, all lengths equally likely."""
    digits = rng.randint(low, high)
    return rng.randrange(10 ** (digits - 1), 10**digits)


CLOSING: Final = "The answer is {}."
CALCULATE: Final = "I let Python calculate it."


def one_block_problem(
    family: str, text: str, answer: int | str, code: str, reason: str = CALCULATE
) -> PracticeProblem:
    return PracticeProblem(family, text, answer, (PlanBlock(reason, code, run=True),), CLOSING)


def digit_sum_of_product(a: int, b: int) -> tuple[PlanBlock, ...]:
    """Return a plan that first sums a number instead of its digits, and then corrects the error."""
    return (
        PlanBlock("I call the product n.", f"n = {a} * {b}", name="n"),
        PlanBlock("Now its digits.", "print(sum(n))", run=True),
        PlanBlock(
            "A number must be made a string first.",
            f"n = {a} * {b}\nprint(sum(int(d) for d in str(n)))",
            run=True,
        ),
    )


def as_answer(value: float) -> int | str:
    """Return the answer as Python prints it."""
    return value if isinstance(value, int) else str(value)
