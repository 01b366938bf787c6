"""Products, their sums and their digits."""

from __future__ import annotations

from random import Random

from trainer.quickstart.problems.base import CLOSINGS, Block, Problem, number


def product(rng: Random) -> Problem:
    a, b = number(rng), number(rng)
    text = rng.choice(
        (
            f"What is {a} times {b}?",
            f"Multiply {a} by {b}.",
            f"Find the product of {a} and {b}.",
            f"Compute {a} * {b}.",
        )
    )
    reason = rng.choice(("I multiply the two numbers.", "The product is needed."))
    return Problem(
        "product", text, a * b, (Block(reason, f"print({a} * {b})", run=True),), rng.choice(CLOSINGS)
    )


def two_products(rng: Random) -> Problem:
    a, b, c, d = (number(rng, 4, 7) for _ in range(4))
    minus = rng.random() < 0.5
    sign, word = ("-", "minus") if minus else ("+", "plus")
    text = rng.choice(
        (
            f"What is {a} times {b} {word} {c} times {d}?",
            f"Compute {a} * {b} {sign} {c} * {d}.",
            f"Take the product of {a} and {b} {word} the product of {c} and {d}.",
        )
    )
    plan = (
        Block(
            rng.choice(("First the product p.", "I call the first product p.")), f"p = {a} * {b}", name="p"
        ),
        Block(rng.choice(("Then the product q.", "The second product is q.")), f"q = {c} * {d}", name="q"),
        Block(f"The value to read is p {word} q.", f"print(p {sign} q)", run=True),
    )
    return Problem(
        "two_products", text, a * b - c * d if minus else a * b + c * d, plan, rng.choice(CLOSINGS)
    )


def power_digits(rng: Random) -> Problem:
    a, n = number(rng, 2, 4), rng.randint(20, 99)
    text = rng.choice(
        (
            f"What is the digit sum of {a} to the power {n}?",
            f"Add up the digits of {a} ** {n}.",
            f"Find the sum of the digits of {a} to the power {n}.",
        )
    )
    plan = (
        Block(rng.choice(("I call the power n.", "Let n be the power.")), f"n = {a} ** {n}", name="n"),
        Block("Its digits are added.", "print(sum(int(d) for d in str(n)))", run=True),
    )
    return Problem("power_digits", text, sum(map(int, str(a**n))), plan, rng.choice(CLOSINGS))


def product_digits(rng: Random) -> Problem:
    """The first try adds up a number instead of its digits: a TypeError each time, then mended."""
    a, b = number(rng, 5, 9), number(rng, 5, 9)
    text = rng.choice(
        (
            f"Add up the digits of {a} times {b}.",
            f"What is the digit sum of the product of {a} and {b}?",
        )
    )
    plan = (
        Block("I call the product n.", f"n = {a} * {b}", name="n"),
        Block("Now its digits.", "print(sum(n))", run=True),
        Block(
            "A number must be made a string first.",
            f"n = {a} * {b}\nprint(sum(int(d) for d in str(n)))",
            run=True,
        ),
    )
    return Problem("product_digits", text, sum(map(int, str(a * b))), plan, rng.choice(CLOSINGS))
