"""Divisors, multiples and remainders."""

from __future__ import annotations

from random import Random

from trainer.quickstart.problems.base import CLOSINGS, Block, Problem, number


def common_divisor(rng: Random) -> Problem:
    g = number(rng, 2, 4)
    a, b = g * number(rng, 2, 5), g * number(rng, 2, 5)
    text = rng.choice(
        (
            f"What is the greatest common divisor of {a} and {b}?",
            f"Find the gcd of {a} and {b}.",
            f"Which is the largest number that divides both {a} and {b}?",
        )
    )
    plan = (Block("The gcd is in math.", f"import math\nprint(math.gcd({a}, {b}))", run=True),)
    return Problem("common_divisor", text, math_gcd(a, b), plan, rng.choice(CLOSINGS))


def common_multiple(rng: Random) -> Problem:
    """The first try forgets the import: a NameError each time, then mended."""
    a, b = number(rng, 4, 7), number(rng, 4, 7)
    text = rng.choice(
        (
            f"What is the least common multiple of {a} and {b}?",
            f"Find the lcm of {a} and {b}.",
        )
    )
    plan = (
        Block("I take the lcm.", f"print(math.lcm({a}, {b}))", run=True),
        Block("The import is missing.", f"import math\nprint(math.lcm({a}, {b}))", run=True),
    )
    return Problem("common_multiple", text, a * b // math_gcd(a, b), plan, rng.choice(CLOSINGS))


def power_remainder(rng: Random) -> Problem:
    a, n, m = number(rng, 4, 8), number(rng, 4, 8), number(rng, 4, 8)
    text = rng.choice(
        (
            f"What is the remainder of {a} to the power {n} when divided by {m}?",
            f"Find {a} ** {n} modulo {m}.",
            f"Divide {a} to the power {n} by {m}. What remains?",
        )
    )
    plan = (Block("This is a modular power.", f"print(pow({a}, {n}, {m}))", run=True),)
    return Problem("power_remainder", text, pow(a, n, m), plan, rng.choice(CLOSINGS))


def divisor_sum(rng: Random) -> Problem:
    n = number(rng, 4, 5)
    text = rng.choice((f"What is the sum of all divisors of {n}?", f"Add up the divisors of {n}."))
    code = f"n = {n}\nprint(sum(d for d in range(1, n + 1) if n % d == 0))"
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    answer = sum(small) + sum(n // d for d in small if d * d != n)
    return Problem(
        "divisor_sum", text, answer, (Block("I try each divisor.", code, run=True),), rng.choice(CLOSINGS)
    )


def multiples(rng: Random) -> Problem:
    """Counting one by one runs into the time limit each time; then division does it."""
    k, n = number(rng, 2, 4), number(rng, 11, 13)
    text = rng.choice(
        (
            f"How many multiples of {k} are there from 1 to {n}?",
            f"How many whole numbers from 1 to {n} can be divided by {k}?",
        )
    )
    count = f"print(sum(1 for i in range(1, {n} + 1) if i % {k} == 0))"
    plan = (
        Block("I count them.", count, run=True, hopeless=True),
        Block("That is too slow, so I divide.", f"print({n} // {k})", run=True),
    )
    return Problem("multiples", text, n // k, plan, rng.choice(CLOSINGS))


def math_gcd(a: int, b: int) -> int:
    """Euclid's own, so that an answer does not come from the code it is compared with."""
    while b:
        a, b = b, a % b
    return a
