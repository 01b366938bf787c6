"""Families of problems with large numbers, in a few fixed wordings each."""

from __future__ import annotations

from random import Random
from typing import Final

from trainer.quickstart.problems.base import PlanBlock, PracticeProblem, digit_sum_of_product, number

CLOSINGS: Final = ("The answer is {}.", "So the answer is {}.", "This gives {}.")


def parity(rng: Random) -> PracticeProblem:
    """Two flushes: the printed remainder decides which factor is used."""
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
        PlanBlock("I call the sum n.", f"n = {a} + {b}", name="n"),
        PlanBlock("Is n even or odd? I must see it.", "print(n % 2)", run=True),
        PlanBlock(
            "It is 1, so n is odd." if odd else "It is 0, so n is even.",
            f"print(n * {d if odd else c})",
            run=True,
        ),
    )
    return PracticeProblem("parity", text, n * (d if odd else c), plan, rng.choice(CLOSINGS))


def larger(rng: Random) -> PracticeProblem:
    """Two flushes: the printed comparison decides which product is used."""
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
        PlanBlock("The first product is p.", f"p = {a} * {b}", name="p"),
        PlanBlock("The second one is q.", f"q = {c} * {d}", name="q"),
        PlanBlock("I must see which is larger.", "print(p > q)", run=True),
        PlanBlock(
            "It is True, so p is larger." if first else "It is False, so q is larger.",
            f"print({'p' if first else 'q'} - {e})",
            run=True,
        ),
    )
    return PracticeProblem("larger", text, max(a * b, c * d) - e, plan, rng.choice(CLOSINGS))


def guarded_division(rng: Random) -> PracticeProblem:
    """In half of the problems the divisor is 0, and the error line decides the next step."""
    c, k = number(rng, 3, 5), rng.randint(2, 9)
    zero = rng.random() < 0.5
    # 0 as a difference of products with different factors, so that it is not obvious.
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
    plan: tuple[PlanBlock, ...] = (
        PlanBlock("The divisor is d.", f"d = {x} * 11 - {c} * {y}", name="d"),
        PlanBlock("I divide by d.", f"print({a} // d)", run=True),
    )
    if divisor == 0:
        plan += (PlanBlock("The divisor is 0, so I multiply.", f"print({a} * {other})", run=True),)
    answer = a * other if divisor == 0 else a // divisor
    return PracticeProblem("guarded_division", text, answer, plan, rng.choice(CLOSINGS))


def common_divisor(rng: Random) -> PracticeProblem:
    g = number(rng, 2, 4)
    a, b = g * number(rng, 2, 5), g * number(rng, 2, 5)
    text = rng.choice(
        (
            f"What is the greatest common divisor of {a} and {b}?",
            f"Find the gcd of {a} and {b}.",
            f"Which is the largest number that divides both {a} and {b}?",
        )
    )
    plan = (PlanBlock("The gcd is in math.", f"import math\nprint(math.gcd({a}, {b}))", run=True),)
    return PracticeProblem("common_divisor", text, math_gcd(a, b), plan, rng.choice(CLOSINGS))


def common_multiple(rng: Random) -> PracticeProblem:
    """The first attempt lacks an import and ends with a NameError; the second one fixes it."""
    a, b = number(rng, 4, 7), number(rng, 4, 7)
    text = rng.choice(
        (
            f"What is the least common multiple of {a} and {b}?",
            f"Find the lcm of {a} and {b}.",
        )
    )
    plan = (
        PlanBlock("I take the lcm.", f"print(math.lcm({a}, {b}))", run=True),
        PlanBlock("The import is missing.", f"import math\nprint(math.lcm({a}, {b}))", run=True),
    )
    return PracticeProblem("common_multiple", text, a * b // math_gcd(a, b), plan, rng.choice(CLOSINGS))


def power_remainder(rng: Random) -> PracticeProblem:
    a, n, m = number(rng, 4, 8), number(rng, 4, 8), number(rng, 4, 8)
    text = rng.choice(
        (
            f"What is the remainder of {a} to the power {n} when divided by {m}?",
            f"Find {a} ** {n} modulo {m}.",
            f"Divide {a} to the power {n} by {m}. What remains?",
        )
    )
    plan = (PlanBlock("This is a modular power.", f"print(pow({a}, {n}, {m}))", run=True),)
    return PracticeProblem("power_remainder", text, pow(a, n, m), plan, rng.choice(CLOSINGS))


def divisor_sum(rng: Random) -> PracticeProblem:
    n = number(rng, 4, 5)
    text = rng.choice((f"What is the sum of all divisors of {n}?", f"Add up the divisors of {n}."))
    code = f"n = {n}\nprint(sum(d for d in range(1, n + 1) if n % d == 0))"
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    answer = sum(small) + sum(n // d for d in small if d * d != n)
    return PracticeProblem(
        "divisor_sum", text, answer, (PlanBlock("I try each divisor.", code, run=True),), rng.choice(CLOSINGS)
    )


def multiples(rng: Random) -> PracticeProblem:
    """The first attempt counts and exceeds the time limit; the second one divides."""
    k, n = number(rng, 2, 4), number(rng, 11, 13)
    text = rng.choice(
        (
            f"How many multiples of {k} are there from 1 to {n}?",
            f"How many whole numbers from 1 to {n} can be divided by {k}?",
        )
    )
    count = f"print(sum(1 for i in range(1, {n} + 1) if i % {k} == 0))"
    plan = (
        PlanBlock("I count them.", count, run=True, times_out=True),
        PlanBlock("That is too slow, so I divide.", f"print({n} // {k})", run=True),
    )
    return PracticeProblem("multiples", text, n // k, plan, rng.choice(CLOSINGS))


def math_gcd(a: int, b: int) -> int:
    """Euclid's algorithm, independent of the code in the plan, so that the answer is a real check."""
    while b:
        a, b = b, a % b
    return a


def product(rng: Random) -> PracticeProblem:
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
    return PracticeProblem(
        "product", text, a * b, (PlanBlock(reason, f"print({a} * {b})", run=True),), rng.choice(CLOSINGS)
    )


def two_products(rng: Random) -> PracticeProblem:
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
        PlanBlock(
            rng.choice(("First the product p.", "I call the first product p.")), f"p = {a} * {b}", name="p"
        ),
        PlanBlock(
            rng.choice(("Then the product q.", "The second product is q.")), f"q = {c} * {d}", name="q"
        ),
        PlanBlock(f"The value to read is p {word} q.", f"print(p {sign} q)", run=True),
    )
    return PracticeProblem(
        "two_products", text, a * b - c * d if minus else a * b + c * d, plan, rng.choice(CLOSINGS)
    )


def power_digits(rng: Random) -> PracticeProblem:
    a, n = number(rng, 2, 4), rng.randint(20, 99)
    text = rng.choice(
        (
            f"What is the digit sum of {a} to the power {n}?",
            f"Add up the digits of {a} ** {n}.",
            f"Find the sum of the digits of {a} to the power {n}.",
        )
    )
    plan = (
        PlanBlock(rng.choice(("I call the power n.", "Let n be the power.")), f"n = {a} ** {n}", name="n"),
        PlanBlock("Its digits are added.", "print(sum(int(d) for d in str(n)))", run=True),
    )
    return PracticeProblem("power_digits", text, sum(map(int, str(a**n))), plan, rng.choice(CLOSINGS))


def product_digits(rng: Random) -> PracticeProblem:
    """The first attempt sums a number instead of its digits and ends with a TypeError; the second one fixes
    it."""
    a, b = number(rng, 5, 9), number(rng, 5, 9)
    text = rng.choice(
        (
            f"Add up the digits of {a} times {b}.",
            f"What is the digit sum of the product of {a} and {b}?",
        )
    )
    plan = digit_sum_of_product(a, b)
    return PracticeProblem("product_digits", text, sum(map(int, str(a * b))), plan, rng.choice(CLOSINGS))


def range_sum(rng: Random) -> PracticeProblem:
    a = number(rng, 2, 5)
    b = a + rng.randint(20, 999)
    word, power = rng.choice((("squares", 2), ("cubes", 3)))
    text = rng.choice(
        (
            f"What is the sum of the {word} of all whole numbers from {a} to {b}?",
            f"Add up the {word} from {a} to {b}.",
        )
    )
    plan = (
        PlanBlock(f"I add the {word}.", f"print(sum(k ** {power} for k in range({a}, {b} + 1)))", run=True),
    )
    return PracticeProblem(
        "range_sum", text, sum(k**power for k in range(a, b + 1)), plan, rng.choice(CLOSINGS)
    )


def sequence(rng: Random) -> PracticeProblem:
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
        PlanBlock("I go from term to term.", code, name="t"),
        PlanBlock(f"Term {n} is t.", "print(t)", run=True),
    )
    answer = start
    for _ in range(n - 1):
        answer = answer * times + plus
    return PracticeProblem("sequence", text, answer, plan, rng.choice(CLOSINGS))


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


def leftover(rng: Random) -> PracticeProblem:
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
        PlanBlock(
            rng.choice(("First all of them.", f"I count all {thing}.")),
            f"total = {boxes} * {each}",
            name="total",
        ),
        PlanBlock(f"What is left is total minus {lost}.", f"print(total - {lost})", run=True),
    )
    return PracticeProblem("leftover", text, boxes * each - lost, plan, f"{{}} {thing} are left.")


def shopping(rng: Random) -> PracticeProblem:
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
        PlanBlock(f"The {first} cost x.", f"x = {n} * {p}", name="x"),
        PlanBlock(f"The {second} cost y.", f"y = {m} * {q}", name="y"),
        PlanBlock("The bill is x plus y.", "print(x + y)", run=True),
    )
    return PracticeProblem("shopping", text, n * p + m * q, plan, "The bill is {} cents.")
