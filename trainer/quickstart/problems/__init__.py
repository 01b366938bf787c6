"""Synthetic problems whose numbers are too big to do in the head, each with the plan that solves it.

A family is a function from a random generator to a `Problem`. The plan is a list of code blocks with the
reasoning before each; `trainer.quickstart.traces` runs it for real and writes the episode down. Plans differ
in what they teach: one block, delayed blocks, a value that decides the next step, an error line that is
mended, a run that is too slow.
"""

from __future__ import annotations

from typing import Final

from trainer.quickstart.problems.sampled import (
    HELD_OUT_SHARE,
    Block,
    Family,
    Problem,
    common_divisor,
    common_multiple,
    divisor_sum,
    guarded_division,
    larger,
    leftover,
    multiples,
    parity,
    power_digits,
    power_remainder,
    product,
    product_digits,
    range_sum,
    sequence,
    shopping,
    two_products,
)

__all__ = ["FAMILIES", "HARD", "HELD_OUT_SHARE", "Block", "Family", "Problem"]

FAMILIES: Final[dict[str, Family]] = {
    make.__name__: make
    for make in (
        product,
        two_products,
        power_digits,
        product_digits,
        common_divisor,
        common_multiple,
        power_remainder,
        divisor_sum,
        range_sum,
        leftover,
        shopping,
        parity,
        larger,
        guarded_division,
        sequence,
        multiples,
    )
}
"""By name. Their order decides what a seed draws, so new ones come last."""

HARD: Final = ("parity", "larger", "guarded_division", "multiples", "shopping", "two_products")
"""Families in which the right number must be picked among many."""
