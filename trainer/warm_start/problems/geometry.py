"""Sequences, geometry, vectors and matrices."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random
from typing import Final

from trainer.warm_start.problems.base import Draft, Kind, Step, signed


def rectangle(rng: Random) -> Draft:
    w, extra = rng.randint(2, 40), rng.randint(1, 30)
    length = w + extra
    ask = rng.choice(("area", "perimeter"))
    given = rng.choice(("sides", "relation"))
    start = (
        f"A rectangle has sides {w} and {length}."
        if given == "sides"
        else f"The length of a rectangle is {extra} more than its width, which is {w}."
    )
    plan: list[Step] = [
        (
            "The sides:",
            f"width = {w}\nlength = {length if given == 'sides' else f'width + {extra}'}",
            "length",
        ),
        (f"The {ask}:", "print(width * length)" if ask == "area" else "print(2 * (width + length))", ""),
    ]
    answer = w * length if ask == "area" else 2 * (w + length)
    return f"{start} What is its {ask}?", answer, plan, f"The {ask} is {{}}."


def distance(rng: Random) -> Draft:
    k = rng.randint(1, 4)
    dx, dy = rng.choice(((3, 4), (5, 12), (8, 15), (7, 24), (20, 21)))
    x, y = rng.randint(-20, 20), rng.randint(-20, 20)
    plan: list[Step] = [
        (
            "The differences of the coordinates:",
            f"dx = {x + k * dx} - ({x})\ndy = {y + k * dy} - ({y})",
            "dy",
        ),
        ("The distance by Pythagoras:", "import math\nprint(math.isqrt(dx**2 + dy**2))", ""),
    ]
    question = f"What is the distance between the points $({x}, {y})$ and $({x + k * dx}, {y + k * dy})$?"
    return question, k * math.isqrt(dx * dx + dy * dy), plan, "The distance is {}."


def triangle_area(rng: Random) -> Draft:
    points = [(rng.randint(-9, 9), rng.randint(-9, 9)) for _ in range(3)]
    (a, b), (c, d), (e, f) = points
    double = abs((c - a) * (f - b) - (e - a) * (d - b))
    shown = ", ".join(f"$({x}, {y})$" for x, y in points)
    plan: list[Step] = [
        ("I use the formula with the cross product of two sides.",
         f"from fractions import Fraction\n"
         f"cross = ({c} - ({a})) * ({f} - ({b})) - ({e} - ({a})) * ({d} - ({b}))",
         "cross"),
        ("The area is half of its size.", "print(Fraction(abs(cross), 2))", ""),
    ]  # fmt: skip
    return (
        f"What is the area of the triangle with vertices {shown}?",
        Fraction(double, 2),
        plan,
        "The area is {}.",
    )


def angles(rng: Random) -> Draft:
    n = rng.randint(5, 30)
    if rng.random() < 0.5:
        a = rng.randint(20, 80)
        b = rng.randint(20, 90)
        question = f"Two angles of a triangle are {a} and {b} degrees. How many degrees is the third?"
        return (
            question,
            180 - a - b,
            [("The angles add up to 180.", f"print(180 - {a} - {b})", "")],
            ("The third angle is {} degrees."),
        )
    question = f"What is the sum of the interior angles of a polygon with {n} sides, in degrees?"
    return (
        question,
        180 * n - 360,
        [("The sum is 180 degrees for each of n - 2 triangles.", f"print(180 * ({n} - 2))", "")],
        "The sum is {} degrees.",
    )


def dot_product(rng: Random) -> Draft:
    n = rng.choice((2, 3, 3))
    u = [rng.randint(-9, 9) for _ in range(n)]
    v = [rng.randint(-9, 9) for _ in range(n)]
    column = [r" \\ ".join(map(str, vector)) for vector in (u, v)]
    question = (
        f"Find the dot product of $\\begin{{pmatrix}} {column[0]} \\end{{pmatrix}}$ and $\\begin{{pmatrix}} "
        f"{column[1]} \\end{{pmatrix}}$."
    )
    plan: list[Step] = [
        ("The vectors:", f"u = {u}\nv = {v}", "u"),
        ("I add the products of the entries.", "print(sum(a * b for a, b in zip(u, v)))", ""),
    ]
    return question, sum(a * b for a, b in zip(u, v, strict=True)), plan, "The dot product is {}."


def determinant(rng: Random) -> Draft:
    a, b, c, d = (rng.randint(-12, 12) for _ in range(4))
    question = f"What is the determinant of $\\begin{{pmatrix}} {a} & {b} \\\\ {c} & {d} \\end{{pmatrix}}$?"
    plan: list[Step] = [
        ("The matrix:", f"import sympy as sp\nm = sp.Matrix([[{a}, {b}], [{c}, {d}]])", "m"),
        ("Its determinant:", "print(m.det())", ""),
    ]
    return question, a * d - b * c, plan, "The determinant is {}."


def arithmetic_series(rng: Random) -> Draft:
    a, d, n = rng.randint(-20, 40), rng.choice([-7, -5, -3, -2, 2, 3, 4, 5, 6, 7, 9]), rng.randint(8, 120)
    total = rng.random() < 0.5
    ask = f"the sum of the first {n} terms" if total else f"the {n}th term"
    question = f"An arithmetic sequence starts with ${a}, {a + d}, {a + 2 * d}, \\ldots$ What is {ask}?"
    last = a + (n - 1) * d
    plan: list[Step] = [("I list the terms.", f"terms = [{a} + k * ({d}) for k in range({n})]", "terms")]
    plan.append(("Then:", "print(sum(terms))" if total else "print(terms[-1])", ""))
    return question, n * (a + last) // 2 if total else last, plan, "The answer is {}."


def geometric(rng: Random) -> Draft:
    a, r, n = rng.randint(1, 12), rng.randint(2, 5), rng.randint(4, 11)
    start = f"{a}, {a * r}, {a * r * r}"
    question = f"What is the sum of the first {n} terms of the geometric sequence ${start}, \\ldots$?"
    plan: list[Step] = [
        (
            "Each term is the last one times the ratio.",
            f"terms = [{a} * {r}**k for k in range({n})]",
            "terms",
        ),
        ("I add them.", "print(sum(terms))", ""),
    ]
    return question, a * (r**n - 1) // (r - 1), plan, "The sum is {}."


def recursion(rng: Random) -> Draft:
    a, b, p, q, n = (
        rng.randint(0, 5),
        rng.randint(1, 6),
        rng.randint(1, 3),
        rng.randint(-2, 3),
        rng.randint(5, 14),
    )
    terms = [a, b]
    while len(terms) < n:
        terms.append(p * terms[-1] + q * terms[-2])
    first = "" if p == 1 else str(p)
    question = (
        f"A sequence has $a_1 = {a}$, $a_2 = {b}$ and $a_n = {first}a_{{n-1}} {signed(q)}a_{{n-2}}$ "
        f"for $n \\ge 3$. Find $a_{{{n}}}$."
    )
    plan: list[Step] = [
        ("I start with the first two terms.", f"terms = [{a}, {b}]", "terms"),
        ("I apply the rule until there are enough.",
         f"while len(terms) < {n}:\n    terms.append({p} * terms[-1] + ({q}) * terms[-2])", "terms"),
        ("The last one is the answer.", "print(terms[-1])", ""),
    ]  # fmt: skip
    return question, terms[-1], plan, f"$a_{{{{{n}}}}}$ is {{}}."


def definite_sum(rng: Random) -> Draft:
    a, b, n = rng.randint(1, 6), rng.randint(-5, 9), rng.randint(8, 90)
    question = f"Evaluate $\\sum_{{k=1}}^{{{n}}} ({a}k^2 {signed(b)})$."
    value = a * n * (n + 1) * (2 * n + 1) // 6 + b * n
    plan: list[Step] = [
        ("The terms of the sum:", f"terms = [{a} * k**2 + ({b}) for k in range(1, {n} + 1)]", "terms"),
        ("I add them.", "print(sum(terms))", ""),
    ]
    return question, value, plan, "The sum is {}."


GEOMETRY: Final[tuple[Kind, ...]] = (
    rectangle, distance, triangle_area, angles, dot_product, determinant, arithmetic_series, geometric,
    recursion, definite_sum,
)  # fmt: skip
