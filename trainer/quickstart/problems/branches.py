"""A value that was read decides the next step."""

from __future__ import annotations

from random import Random

from trainer.quickstart.problems.base import CLOSINGS, Block, Problem, number


def parity(rng: Random) -> Problem:
    """Two flushes: the remainder that was read decides what is added or taken away."""
    a, b, c, d = number(rng, 4, 8), number(rng, 4, 8), number(rng, 4, 7), number(rng, 4, 7)
    text = rng.choice(
        (
            f"Let n be {a} plus {b}. If n is even, what is n times {c}? If n is odd, what is n times {d}?",
            f"Add {a} and {b}. If the sum is even, multiply it by {c}. If it is odd, multiply it by {d}.",
        )
    )
    n = a + b
    odd = n % 2
    plan = (
        Block("I call the sum n.", f"n = {a} + {b}", name="n"),
        Block("Is n even or odd? I must see it.", "print(n % 2)", run=True),
        Block(
            "It is 1, so n is odd." if odd else "It is 0, so n is even.",
            f"print(n * {d if odd else c})",
            run=True,
        ),
    )
    return Problem("parity", text, n * (d if odd else c), plan, rng.choice(CLOSINGS))


def larger(rng: Random) -> Problem:
    """Two flushes: the comparison that was read decides which product goes on."""
    a, b, c, d, e = (number(rng, 4, 6) for _ in range(5))
    if rng.random() < 0.5:
        a, b, c, d = c, d, a, b
    text = rng.choice(
        (
            f"Which is larger, {a} times {b} or {c} times {d}? What is the larger one minus {e}?",
            f"Take the larger of {a} * {b} and {c} * {d}. Subtract {e} from it.",
        )
    )
    first = a * b > c * d
    plan = (
        Block("The first product is p.", f"p = {a} * {b}", name="p"),
        Block("The second one is q.", f"q = {c} * {d}", name="q"),
        Block("I must see which is larger.", "print(p > q)", run=True),
        Block(
            "It is True, so p is larger." if first else "It is False, so q is larger.",
            f"print({'p' if first else 'q'} - {e})",
            run=True,
        ),
    )
    return Problem("larger", text, max(a * b, c * d) - e, plan, rng.choice(CLOSINGS))


def guarded_division(rng: Random) -> Problem:
    """In half of the problems the divisor is 0: the error line decides the next step."""
    c, k = number(rng, 3, 5), rng.randint(2, 9)
    zero = rng.random() < 0.5
    # b * k = c * k2 with different factors, so that it is not seen at a glance.
    x, y = (c * k, k * 11) if zero else (number(rng, 4, 6), rng.randint(20, 99))
    a, other, divisor = number(rng, 11, 13), number(rng, 4, 7), x * 11 - c * y
    text = rng.choice(
        (
            f"Divide {a} by {x} * 11 - {c} * {y}, rounded down. "
            f"If the divisor is 0, give {a} times {other} instead.",
            f"Let d be {x} * 11 - {c} * {y}. What is {a} divided by d, rounded down? "
            f"If d is 0, what is {a} times {other}?",
        )
    )
    plan: tuple[Block, ...] = (
        Block("The divisor is d.", f"d = {x} * 11 - {c} * {y}", name="d"),
        Block("I divide by d.", f"print({a} // d)", run=True),
    )
    if divisor == 0:
        plan += (Block("The divisor is 0, so I multiply.", f"print({a} * {other})", run=True),)
    answer = a * other if divisor == 0 else a // divisor
    return Problem("guarded_division", text, answer, plan, rng.choice(CLOSINGS))
