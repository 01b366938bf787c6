"""Everyday stories: money, shares, travel, work, units."""

from __future__ import annotations

from fractions import Fraction
from random import Random
from typing import Final

from trainer.warm_start.problems.base import Draft, Kind, Step, pick

_NAMES: Final = (
    "Amir", "Bea", "Carlos", "Dina", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Leo", "Mina",
    "Nadia", "Oskar", "Priya", "Quinn", "Rosa", "Samir", "Tara", "Uma", "Viktor", "Wanda", "Yusuf", "Zoe",
)  # fmt: skip
_GOODS: Final = (
    ("notebook", "notebooks"), ("pen", "pens"), ("ticket", "tickets"), ("apple", "apples"), ("book", "books"),
    ("mug", "mugs"), ("cable", "cables"), ("plant", "plants"), ("lamp", "lamps"), ("chair", "chairs"),
)  # fmt: skip


def shopping(rng: Random) -> Draft:
    who = rng.choice(_NAMES)
    (_, one), (_, two) = rng.sample(_GOODS, 2)
    a, b = rng.randint(2, 24), rng.randint(2, 24)
    p, q = rng.randint(2, 60), rng.randint(2, 60)
    paid = ((a * p + b * q) // 50 + 1) * 50
    change = rng.random() < 0.5
    ask = (
        f"{who} pays with ${paid}. How much change does {who} get?"
        if change
        else "How many dollars is that in total?"
    )
    question = pick(
        rng,
        f"{who} buys {a} {one} at ${p} each and {b} {two} at ${q} each. {ask}",
        f"A shop sells {one} for ${p} and {two} for ${q}. {who} takes {a} {one} and {b} {two}. {ask}",
    )
    plan: list[Step] = [
        (f"First the cost of the {one}.", f"first = {a} * {p}", "first"),
        (f"Then the cost of the {two}.", f"second = {b} * {q}", "second"),
    ]
    if change:
        plan.append(("The rest of the money is the change.", f"print({paid} - (first + second))", ""))
        return question, paid - a * p - b * q, plan, f"{who} gets ${{}} back."
    plan.append(("I add both.", "print(first + second)", ""))
    return question, a * p + b * q, plan, "The total is {} dollars."


def discount(rng: Random) -> Draft:
    good, _ = rng.choice(_GOODS)
    price, percent = rng.randint(4, 90) * 20, rng.choice((5, 10, 15, 20, 25, 30, 35, 40, 60))
    up = rng.random() < 0.4
    what = f"raised by {percent}%" if up else f"reduced by {percent}%"
    question = pick(
        rng,
        f"The price of a {good} is ${price}. It is {what}. What is the new price in dollars?",
        f"A {good} costs {price} dollars before it is {what}. How much does it cost now?",
        f"What is {price} {'increased' if up else 'decreased'} by {percent} percent?",
    )
    change = Fraction(price * percent, 100)
    answer = price + change if up else price - change
    sign = "+" if up else "-"
    plan: list[Step] = [
        (f"The change is {percent}% of {price}.", f"change = {price} * {percent} / 100", "change"),
        ("So the new price is:", f"print({price} {sign} change)", ""),
    ]
    return question, str(float(answer)), plan, "The answer is {}."


def percent_of(rng: Random) -> Draft:
    total = rng.randint(4, 150) * 20
    percent = rng.randint(1, 19) * 5
    who, (_, goods) = rng.choice(_NAMES), rng.choice(_GOODS)
    question = pick(
        rng,
        f"What is {percent}% of {total}?",
        f"{percent} percent of the {total} {goods} in a store are damaged. How many are not damaged?",
        f"{who} has {total} {goods} and gives away {percent}% of them. How many {goods} are left?",
    )
    part = total * percent // 100
    if question.startswith("What"):
        return (
            question,
            part,
            [("I multiply and divide by 100.", f"print({total} * {percent} // 100)", "")],
            f"{percent}% of {total} is {{}}.",
        )
    plan: list[Step] = [
        (f"{percent}% of {total} is:", f"part = {total} * {percent} // 100", "part"),
        ("The rest is left.", f"print({total} - part)", ""),
    ]
    return question, total - part, plan, f"{{}} {goods} are left."


def fraction_of(rng: Random) -> Draft:
    d = rng.randint(3, 9)
    n = rng.randint(1, d - 1)
    total = d * rng.randint(4, 80)
    who, (_, goods) = rng.choice(_NAMES), rng.choice(_GOODS)
    extra = rng.randint(2, 40)
    question = pick(
        rng,
        f"{who} has {total} {goods}, sells {n}/{d} of them and then buys {extra} more. How many {goods} does "
        f"{who} have now?",
        f"Of {total} {goods}, a fraction of $\\frac{{{n}}}{{{d}}}$ is sold. Then {extra} new ones arrive. "
        f"How many {goods} are there now?",
    )
    plan: list[Step] = [
        (f"The part that is sold is {n}/{d} of {total}.", f"sold = {total} * {n} // {d}", "sold"),
        ("What remains, with the new ones:", f"print({total} - sold + {extra})", ""),
    ]
    return question, total - total // d * n + extra, plan, f"There are {{}} {goods}."


def travel(rng: Random) -> Draft:
    v, w = rng.randint(3, 24) * 5, rng.randint(3, 24) * 5
    s, t = rng.randint(1, 9), rng.randint(1, 9)
    who = rng.choice(_NAMES)
    ask = rng.choice(("distance", "average"))
    tail = "How many kilometres is that?" if ask == "distance" else "What is the average speed in km/h?"
    question = f"{who} drives {s} hours at {v} km/h and then {t} hours at {w} km/h. {tail}"
    plan: list[Step] = [("The distance of both parts:", f"distance = {v} * {s} + {w} * {t}", "distance")]
    total = v * s + w * t
    if ask == "distance":
        plan.append(("I print it.", "print(distance)", ""))
        return question, total, plan, "The distance is {} km."
    plan.append(("The whole time:", f"hours = {s} + {t}", "hours"))
    plan.append(
        (
            "The average speed is distance over time.",
            "from fractions import Fraction\nprint(Fraction(distance, hours))",
            "",
        )
    )
    return question, Fraction(total, s + t), plan, "The average speed is {} km/h."


def sharing(rng: Random) -> Draft:
    k, each, rest = rng.randint(3, 30), rng.randint(3, 60), 0
    rest = rng.randint(0, k - 1)
    total = k * each + rest
    _, goods = rng.choice(_GOODS)
    left = rng.random() < 0.5
    ask = f"How many {goods} are left over?" if left else f"How many {goods} does each one get?"
    question = pick(
        rng,
        f"{total} {goods} are shared equally among {k} children, as many as possible each. {ask}",
        f"A teacher divides {total} {goods} equally between {k} pupils. {ask}",
    )
    code = f"print({total} % {k})" if left else f"print({total} // {k})"
    reason = "What is left is the remainder." if left else "Each one gets the whole part of the quotient."
    return question, rest if left else each, [(reason, code, "")], "The answer is {}."


def ages(rng: Random) -> Draft:
    one, two = rng.sample(_NAMES, 2)
    y, k, gap = rng.randint(4, 30), rng.randint(2, 4), rng.randint(1, 15)
    x = k * y + gap
    question = (
        f"{one} is {gap} years older than {k} times the age of {two}. Together they are {x + y} years old. "
        f"How old is {one if (ask := rng.random() < 0.5) else two}?"
    )
    plan: list[Step] = [
        (
            f"Let y be the age of {two}; then {one} is {k}y + {gap}.",
            "import sympy as sp\ny = sp.symbols('y')",
            "",
        ),
        (
            "The ages add up to the total.",
            f"age = sp.solve(sp.Eq({k} * y + {gap} + y, {x + y}), y)[0]",
            "age",
        ),
        ("So the answer is:", f"print({f'{k} * age + {gap}' if ask else 'age'})", ""),
    ]
    return question, x if ask else y, plan, f"{one if ask else two} is {{}} years old."


def work_rate(rng: Random) -> Draft:
    one, two = rng.sample(_NAMES, 2)
    a, b = rng.randint(2, 15), rng.randint(2, 15)
    question = (
        f"{one} paints a fence in {a} hours, and {two} paints it in {b} hours. How many hours do they need "
        f"together? Give a fraction in lowest terms or a whole number."
    )
    plan: list[Step] = [
        ("In one hour they paint this part of the fence:",
         f"from fractions import Fraction\nrate = Fraction(1, {a}) + Fraction(1, {b})", "rate"),
        ("The time is the inverse of the rate.", "print(1 / rate)", ""),
    ]  # fmt: skip
    return question, Fraction(a * b, a + b), plan, "Together they need {} hours."


def interest(rng: Random) -> Draft:
    start, percent, years = rng.randint(2, 50) * 100, rng.randint(1, 12), rng.randint(2, 10)
    value = start * (1 + Fraction(percent, 100)) ** years
    question = (
        f"${start} are invested at {percent}% interest a year, compounded annually. How many dollars is the "
        f"investment worth after {years} years, rounded to the nearest dollar?"
    )
    plan: list[Step] = [
        (
            "Each year multiplies the value by the same factor.",
            f"value = {start} * (1 + {percent} / 100) ** {years}",
            "value",
        ),
        ("I round it.", "print(round(value))", ""),
    ]
    return question, round(value), plan, "It is worth about {} dollars."


def unit_conversion(rng: Random) -> Draft:
    h, m, s = rng.randint(1, 30), rng.randint(1, 59), rng.randint(1, 59)
    kind = rng.choice(("seconds", "minutes", "inches"))
    if kind == "inches":
        feet, inches = rng.randint(1, 90), rng.randint(1, 11)
        code = f"print({feet} * 12 + {inches})"
        return (
            f"How many inches are {feet} feet and {inches} inches?", feet * 12 + inches,
            [("A foot has 12 inches.", code, "")], "That is {} inches.",
        )  # fmt: skip
    if kind == "minutes":
        return (
            f"How many minutes are {h} hours and {m} minutes?", h * 60 + m,
            [("An hour has 60 minutes.", f"print({h} * 60 + {m})", "")], "That is {} minutes.",
        )  # fmt: skip
    plan: list[Step] = [
        ("The hours and minutes in seconds:", f"hours = {h} * 3600\nminutes = {m} * 60", "minutes"),
        ("All together:", f"print(hours + minutes + {s})", ""),
    ]
    question = f"How many seconds are {h} hours, {m} minutes and {s} seconds?"
    return question, h * 3600 + m * 60 + s, plan, "That is {} seconds."


def average(rng: Random) -> Draft:
    values = [rng.randint(10, 100) for _ in range(rng.randint(4, 7))]
    listed = ", ".join(map(str, values[:-1]))
    if rng.random() < 0.5:
        mean = rng.randint(30, 90)
        missing = mean * len(values) - sum(values[:-1])
        who = rng.choice(_NAMES)
        question = (
            f"{who} has the scores {listed}. Which score in the next test makes the average of all "
            f"{len(values)} tests {mean}?"
        )
        plan: list[Step] = [
            ("The total that is needed:", f"needed = {mean} * {len(values)}", "needed"),
            ("The total so far:", f"so_far = sum([{listed}])", "so_far"),
            ("The difference is the score.", "print(needed - so_far)", ""),
        ]
        return question, missing, plan, "The score has to be {}."
    ask = rng.choice(("mean", "median"))
    question = f"What is the {ask} of {listed} and {values[-1]}? Give an exact value."
    ordered = sorted(values)
    half = len(ordered) // 2
    middle = Fraction(ordered[half]) if len(ordered) % 2 else Fraction(ordered[half - 1] + ordered[half], 2)
    answer = middle if ask == "median" else Fraction(sum(values), len(values))
    numbers = ", ".join(f"Fraction({v})" for v in values)
    plan = [
        (
            "I use exact fractions.",
            f"from fractions import Fraction\nimport statistics\nvalues = [{numbers}]",
            "",
        ),
        (f"The {ask}:", f"print(statistics.{ask}(values))", ""),
    ]
    return question, answer, plan, f"The {ask} is {{}}."


STORIES: Final[tuple[Kind, ...]] = (
    shopping, discount, percent_of, fraction_of, travel, sharing, ages, work_rate, interest,
    unit_conversion, average,
)  # fmt: skip
