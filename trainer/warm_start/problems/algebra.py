"""Equations, functions and expressions."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random
from typing import Final

from trainer.warm_start.problems.base import Draft, Kind, Step, pick, signed


def linear_equation(rng: Random) -> Draft:
    a, c = rng.sample(range(2, 20), 2)
    x = Fraction(rng.randint(-30, 30), rng.choice((1, 1, 1, 2, 3)))
    b = rng.randint(-40, 40)
    d = (a - c) * x + b
    if d.denominator != 1:
        x = Fraction(x.numerator)
        d = (a - c) * x + b
    left, right = f"{a}x {signed(b)}", f"{c}x {signed(int(d))}"
    question = pick(
        rng, f"Solve for $x$: ${left} = {right}$.", f"If ${left} = {right}$, what is the value of $x$?",
        f"What is x if {left} = {right}?",
    )  # fmt: skip
    plan: list[Step] = [
        ("I set up the equation with sympy.",
         f"import sympy as sp\nx = sp.symbols('x')\nequation = sp.Eq({a} * x + {b}, {c} * x + {int(d)})", ""),
        ("I solve it.", "print(sp.solve(equation, x)[0])", ""),
    ]  # fmt: skip
    return question, x, plan, "So $x$ is {}."


def quadratic(rng: Random) -> Draft:
    r, s = rng.sample([*range(-15, 0), *range(1, 16)], 2)
    b, c = -(r + s), r * s
    equation = f"x^2 {signed(b)}x {signed(c)}"
    ask = rng.choice(("larger", "smaller", "squares", "difference"))
    what = {
        "larger": "Find the larger solution of",
        "smaller": "Find the smaller solution of",
        "squares": "What is the sum of the squares of the solutions of",
        "difference": "What is the positive difference between the solutions of",
    }[ask]
    answer = {"larger": max(r, s), "smaller": min(r, s), "squares": r * r + s * s, "difference": abs(r - s)}[
        ask
    ]
    code = {
        "larger": "print(max(roots))", "smaller": "print(min(roots))",
        "squares": "print(sum(root ** 2 for root in roots))", "difference": "print(max(roots) - min(roots))",
    }[ask]  # fmt: skip
    plan: list[Step] = [
        ("I find the roots.",
         f"import sympy as sp\nx = sp.symbols('x')\nroots = sp.solve(x**2 + ({b}) * x + ({c}), x)", "roots"),
        ("From the roots follows the answer.", code, ""),
    ]  # fmt: skip
    return (
        f"{what} ${equation} = 0$?" if what.startswith("What") else f"{what} ${equation} = 0$.",
        answer,
        plan,
        ("The answer is {}."),
    )


def system(rng: Random) -> Draft:
    x, y = rng.randint(-12, 15), rng.randint(-12, 15)
    while True:
        a, b, c, d = (rng.choice([-5, -4, -3, -2, 2, 3, 4, 5, 6, 7]) for _ in range(4))
        if a * d != b * c:
            break
    ask = rng.choice(("x", "y", "x + y", "xy"))
    e, f = a * x + b * y, c * x + d * y
    question = pick(
        rng,
        f"If ${a}x {signed(b)}y = {e}$ and ${c}x {signed(d)}y = {f}$, what is ${ask}$?",
        f"The numbers $x$ and $y$ satisfy ${a}x {signed(b)}y = {e}$ and ${c}x {signed(d)}y = {f}$. "
        f"Find ${ask}$.",
    )
    answer = {"x": x, "y": y, "x + y": x + y, "xy": x * y}[ask]
    value = {"x": "found[x]", "y": "found[y]", "x + y": "found[x] + found[y]", "xy": "found[x] * found[y]"}[
        ask
    ]
    plan: list[Step] = [
        ("I write down both equations.",
         f"import sympy as sp\nx, y = sp.symbols('x y')\nfirst = sp.Eq({a} * x + ({b}) * y, {e})\n"
         f"second = sp.Eq({c} * x + ({d}) * y, {f})", ""),
        ("I solve them together.", "found = sp.solve([first, second], [x, y])", "found"),
        (f"The question asks for {ask}.", f"print({value})", ""),
    ]  # fmt: skip
    return question, answer, plan, f"${ask}$ is {{}}."


def evaluate(rng: Random) -> Draft:
    a, b, c, n = rng.randint(2, 9), rng.randint(-9, 9), rng.randint(-9, 9), rng.randint(-9, 12)
    f = f"{a}x^2 {signed(b)}x {signed(c)}"
    value = a * n * n + b * n + c
    if rng.random() < 0.4:
        m = rng.randint(-6, 9)
        other = a * m * m + b * m + c
        plan: list[Step] = [
            ("I define the function.", f"def f(x):\n    return {a} * x**2 + ({b}) * x + ({c})", ""),
            ("Both values together:", f"print(f({n}) + f({m}))", ""),
        ]
        return f"Let $f(x) = {f}$. What is $f({n}) + f({m})$?", value + other, plan, "The sum is {}."
    plan = [
        ("I define the function.", f"def f(x):\n    return {a} * x**2 + ({b}) * x + ({c})", ""),
        (f"I insert {n}.", f"print(f({n}))", ""),
    ]
    return f"If $f(x) = {f}$, what is $f({n})$?", value, plan, f"$f({n})$ is {{}}."


def composition(rng: Random) -> Draft:
    a, b, c, n = rng.randint(2, 9), rng.randint(-9, 9), rng.randint(-9, 9), rng.randint(-6, 9)
    inner = n * n + c
    plan: list[Step] = [
        ("First $g$.", f"def g(x):\n    return x**2 + ({c})", ""),
        ("Then $f$.", f"def f(x):\n    return {a} * x + ({b})", ""),
        ("I put one into the other.", f"print(f(g({n})))", ""),
    ]
    question = f"Let $f(x) = {a}x {signed(b)}$ and $g(x) = x^2 {signed(c)}$. Find $f(g({n}))$."
    return question, a * inner + b, plan, f"$f(g({n}))$ is {{}}."


def expression(rng: Random) -> Draft:
    a, b, c, d = (rng.randint(2, 99) for _ in range(4))
    forms: list[tuple[str, str, Fraction]] = [
        (f"{a} \\cdot {b} + {c} \\cdot {d}", f"{a} * {b} + {c} * {d}", Fraction(a * b + c * d)),
        (f"({a} + {b})({c} - {d})", f"({a} + {b}) * ({c} - {d})", Fraction((a + b) * (c - d))),
        (f"{a}^2 - {b}^2 + {c}", f"{a}**2 - {b}**2 + {c}", Fraction(a * a - b * b + c)),
        (f"{a} * {b} - {c}", f"{a} * {b} - {c}", Fraction(a * b - c)),
        (f"{a} * {b} * {c} + {d}", f"{a} * {b} * {c} + {d}", Fraction(a * b * c + d)),
        (f"\\frac{{{a}}}{{{b}}} + \\frac{{{c}}}{{{d}}}", f"Fraction({a}, {b}) + Fraction({c}, {d})",
         Fraction(a, b) + Fraction(c, d)),
        (f"\\frac{{{a}}}{{{b}}} \\div \\frac{{{c}}}{{{d}}}", f"Fraction({a}, {b}) / Fraction({c}, {d})",
         Fraction(a, b) / Fraction(c, d)),
    ]  # fmt: skip
    shown, code, value = rng.choice(forms)
    question = pick(
        rng, f"Compute ${shown}$.", f"What is ${shown}$?", f"Evaluate ${shown}$.", f"Calculate {shown}",
        f"Simplify ${shown}$.",
    )  # fmt: skip
    start = "from fractions import Fraction\n" if "Fraction" in code else ""
    return question, value, [("I calculate it.", f"{start}print({code})", "")], "The value is {}."


def polynomial_roots(rng: Random) -> Draft:
    roots = sorted(rng.sample(range(-8, 9), 3))
    r, s, t = roots
    b, c, d = -(r + s + t), r * s + r * t + s * t, -r * s * t
    p = f"x^3 {signed(b)}x^2 {signed(c)}x {signed(d)}"
    ask = rng.choice(("largest", "smallest"))
    plan: list[Step] = [
        ("I factor it by its roots.",
         f"import sympy as sp\nx = sp.symbols('x')\n"
         f"roots = sp.solve(x**3 + ({b}) * x**2 + ({c}) * x + ({d}), x)",
         "roots"),
        (f"The {ask} one:", f"print({'max' if ask == 'largest' else 'min'}(roots))", ""),
    ]  # fmt: skip
    answer = max(roots) if ask == "largest" else min(roots)
    return f"What is the {ask} root of ${p}$?", answer, plan, f"The {ask} root is {{}}."


def parabola_minimum(rng: Random) -> Draft:
    a, h, k = rng.randint(1, 6), rng.randint(-9, 9), rng.randint(-30, 30)
    b, c = -2 * a * h, a * h * h + k
    lead = "" if a == 1 else str(a)
    plan: list[Step] = [
        (
            "I write the expression.",
            f"import sympy as sp\nx = sp.symbols('x')\nf = {a} * x**2 + ({b}) * x + ({c})",
            "",
        ),
        ("The minimum is where the derivative is zero.", "place = sp.solve(sp.diff(f, x), x)[0]", "place"),
        ("The value there:", "print(f.subs(x, place))", ""),
    ]
    question = f"Find the minimum value of ${lead}x^2 {signed(b)}x {signed(c)}$ over all real numbers $x$."
    return question, k, plan, "The minimum value is {}."


def absolute_count(rng: Random) -> Draft:
    a, b = rng.randint(-20, 20), rng.randint(3, 40)
    k = rng.randint(1, 5)
    lead = "x" if k == 1 else f"{k}x"
    question = pick(
        rng,
        f"How many integers $x$ satisfy $|{lead} {signed(a)}| \\le {b}$?",
        f"For how many integer values of $x$ is $|{lead} {signed(a)}| < {b + 1}$?",
    )
    answer = (b - a) // k - math.ceil((-b - a) / k) + 1
    plan: list[Step] = [
        ("I test the integers of a range that is wide enough.",
         f"found = [x for x in range(-200, 201) if abs({k} * x + ({a})) <= {b}]", "found"),
        ("I count them.", "print(len(found))", ""),
    ]  # fmt: skip
    return question, answer, plan, "There are {} such integers."


def complex_product(rng: Random) -> Draft:
    a, b, c, d = (rng.choice([-9, -7, -5, -4, -3, -2, 2, 3, 4, 5, 6, 8]) for _ in range(4))
    real, imaginary = a * c - b * d, a * d + b * c
    while real == 0 or imaginary in (0, 1, -1):
        d += 11
        real, imaginary = a * c - b * d, a * d + b * c
    question = f"Compute $({a} {signed(b)}i)({c} {signed(d)}i)$ and write the result as $a + bi$."
    plan: list[Step] = [
        ("I multiply with sympy.",
         f"import sympy as sp\nvalue = sp.expand(({a} + ({b}) * sp.I) * ({c} + ({d}) * sp.I))", "value"),
        ("The parts:", "print(f'{int(sp.re(value))}{int(sp.im(value)):+}i')", ""),
    ]  # fmt: skip
    return question, f"{real}{imaginary:+}i", plan, "The product is {}."


ALGEBRA: Final[tuple[Kind, ...]] = (
    linear_equation, quadratic, system, evaluate, composition, expression, polynomial_roots,
    parabola_minimum, absolute_count, complex_product,
)  # fmt: skip
