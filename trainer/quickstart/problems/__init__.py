"""Practice problems of the quickstart checkpoint, each with the plan that solves it.

A family is a function from a random generator to a problem. The plan is a list of code blocks, each with the
reasoning before it; `trainer.quickstart.traces` runs the plan and writes the episode. Plans teach different
skills: one block, delayed blocks, a printed value that decides the next step, an error that is fixed, and
a run that is too slow.
"""

from __future__ import annotations

from random import Random
from typing import Final

from trainer.quickstart.problems import arithmetic, families, number_theory, stories
from trainer.quickstart.problems.base import HELD_OUT_SHARE, Family, PlanBlock, PracticeProblem, in_box

__all__ = [
    "EVERYDAY",
    "FAMILIES",
    "HARD",
    "HELD_OUT_SHARE",
    "Family",
    "PlanBlock",
    "PracticeProblem",
    "everyday_question",
    "in_box",
]

FAMILIES: Final[dict[str, Family]] = {
    make.__name__: make
    for make in (
        families.product,
        families.two_products,
        families.power_digits,
        families.product_digits,
        families.common_divisor,
        families.common_multiple,
        families.power_remainder,
        families.divisor_sum,
        families.range_sum,
        families.leftover,
        families.shopping,
        families.parity,
        families.larger,
        families.guarded_division,
        families.sequence,
        families.multiples,
    )
}
"""Families by name. A seed's draws depend on their order, so add new ones at the end."""

HARD: Final = ("parity", "larger", "guarded_division", "multiples", "shopping", "two_products")
"""Families in which the model has to select the right number among many."""

EVERYDAY: Final[dict[Family, int]] = {
    arithmetic.calculation: 45,
    arithmetic.scaled: 5,
    arithmetic.power: 5,
    arithmetic.factorial: 3,
    arithmetic.factorial_quotient: 3,
    arithmetic.square_root: 2,
    number_theory.prime: 5,
    number_theory.divisible: 2,
    number_theory.remainder: 4,
    number_theory.divisor: 4,
    number_theory.multiple: 3,
    number_theory.digit_sum: 5,
    number_theory.divisors: 3,
    stories.ranges: 4,
    stories.chain: 4,
    stories.story: 8,
}
"""Families of everyday questions in free wordings, with their weights."""


def everyday_question(rng: Random) -> PracticeProblem:
    """Return an everyday question of a random family."""
    [family] = rng.choices(tuple(EVERYDAY), tuple(EVERYDAY.values()))
    return family(rng)
