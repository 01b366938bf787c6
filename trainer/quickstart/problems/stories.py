"""Small word problems."""

from __future__ import annotations

from random import Random
from typing import Final

from trainer.quickstart.problems.base import Block, Problem, number

PEOPLE: Final = ("Mara", "Tom", "Ada", "Ravi", "Lena", "Omar", "Yuki", "Nils", "Ines", "Paul", "Zoe", "Ken")
THINGS: Final = (
    "apples",
    "pears",
    "bolts",
    "bricks",
    "books",
    "pens",
    "tiles",
    "eggs",
    "seeds",
    "cups",
    "nails",
    "coins",
)
HOLDERS: Final = ("boxes", "crates", "bags", "trucks", "shelves", "carts", "jars", "sacks")


def leftover(rng: Random) -> Problem:
    who, thing, holder = rng.choice(PEOPLE), rng.choice(THINGS), rng.choice(HOLDERS)
    boxes, each = number(rng, 4, 7), number(rng, 3, 6)
    lost = number(rng, 3, 5)
    text = rng.choice(
        (
            f"{who} has {boxes} {holder} with {each} {thing} in each. "
            f"{lost} {thing} are lost. How many are left?",
            f"There are {each} {thing} in each of {boxes} {holder}. "
            f"{who} takes {lost} of them. How many remain?",
            f"{who} fills {boxes} {holder} with {each} {thing} each and sells {lost} {thing}. "
            f"How many are left?",
        )
    )
    plan = (
        Block(
            rng.choice(("First all of them.", f"I count all {thing}.")),
            f"total = {boxes} * {each}",
            name="total",
        ),
        Block(f"What is left is total minus {lost}.", f"print(total - {lost})", run=True),
    )
    return Problem("leftover", text, boxes * each - lost, plan, f"{{}} {thing} are left.")


def shopping(rng: Random) -> Problem:
    who = rng.choice(PEOPLE)
    first, second = rng.sample(THINGS, 2)
    n, p, m, q = (number(rng, 3, 6) for _ in range(4))
    text = rng.choice(
        (
            f"{who} buys {n} {first} at {p} cents each and {m} {second} at {q} cents each. "
            f"What is the bill in cents?",
            f"One of the {first} costs {p} cents, one of the {second} costs {q} cents. "
            f"{who} takes {n} {first} and {m} {second}. How many cents are to be paid?",
        )
    )
    plan = (
        Block(f"The {first} cost x.", f"x = {n} * {p}", name="x"),
        Block(f"The {second} cost y.", f"y = {m} * {q}", name="y"),
        Block("The bill is x plus y.", "print(x + y)", run=True),
    )
    return Problem("shopping", text, n * p + m * q, plan, "The bill is {} cents.")
