"""Sums and sequences."""

from __future__ import annotations

from random import Random

from trainer.quickstart.problems.base import CLOSINGS, Block, Problem, number


def range_sum(rng: Random) -> Problem:
    a = number(rng, 2, 5)
    b = a + rng.randint(20, 999)
    word, power = rng.choice((("squares", 2), ("cubes", 3)))
    text = rng.choice(
        (
            f"What is the sum of the {word} of all whole numbers from {a} to {b}?",
            f"Add up the {word} from {a} to {b}.",
        )
    )
    plan = (Block(f"I add the {word}.", f"print(sum(k ** {power} for k in range({a}, {b} + 1)))", run=True),)
    return Problem("range_sum", text, sum(k**power for k in range(a, b + 1)), plan, rng.choice(CLOSINGS))


def sequence(rng: Random) -> Problem:
    start, times, plus, n = number(rng, 3, 6), rng.randint(2, 60), number(rng, 2, 5), rng.randint(4, 8)
    text = rng.choice(
        (
            f"A sequence starts with {start}. Each next term is {times} times the last one plus {plus}. "
            f"What is term number {n}?",
            f"The first term is {start}, and each term is the one before times {times} plus {plus}. "
            f"Find term {n}.",
        )
    )
    code = f"t = {start}\nfor i in range({n} - 1):\n    t = t * {times} + {plus}"
    plan = (
        Block("I go from term to term.", code, name="t"),
        Block(f"Term {n} is t.", "print(t)", run=True),
    )
    answer = start
    for _ in range(n - 1):
        answer = answer * times + plus
    return Problem("sequence", text, answer, plan, rng.choice(CLOSINGS))
