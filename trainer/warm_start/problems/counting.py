"""Whole numbers, counting and probability."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from random import Random
from typing import Final

from trainer.warm_start.problems.base import Draft, Kind, Step, pick


def remainder_of_power(rng: Random) -> Draft:
    a, e, m = rng.randint(2, 40), rng.randint(5, 2000), rng.randint(3, 101)
    question = pick(
        rng,
        f"What is the remainder when ${a}^{{{e}}}$ is divided by {m}?",
        f"Find the remainder of ${a}^{{{e}}}$ on division by ${m}$.",
    )
    value = 1
    for _ in range(e):
        value = value * a % m
    return (
        question,
        value,
        [("Python has modular powers.", f"print(pow({a}, {e}, {m}))", "")],
        ("The remainder is {}."),
    )


def units_digit(rng: Random) -> Draft:
    a, e, b, f = rng.randint(2, 99), rng.randint(5, 300), rng.randint(2, 99), rng.randint(5, 300)
    if rng.random() < 0.5:
        return (
            f"What is the units digit of ${a}^{{{e}}}$?", pow(a, e, 10),
            [("The units digit is the remainder modulo 10.", f"print(pow({a}, {e}, 10))", "")],
            "The units digit is {}.",
        )  # fmt: skip
    plan: list[Step] = [
        ("The first power modulo 10.", f"first = pow({a}, {e}, 10)", "first"),
        ("The second power modulo 10.", f"second = pow({b}, {f}, 10)", "second"),
        ("The units digit of the sum:", "print((first + second) % 10)", ""),
    ]
    question = f"What is the units digit of ${a}^{{{e}}} + {b}^{{{f}}}$?"
    return question, (a**e + b**f) % 10, plan, "The units digit is {}."


def divisors(rng: Random) -> Draft:
    n = rng.randint(12, 3000)
    found = [d for d in range(1, n + 1) if n % d == 0]
    ask = rng.choice(("count", "sum", "even"))
    what = {
        "count": f"How many positive divisors does {n} have?",
        "sum": f"What is the sum of the positive divisors of {n}?",
        "even": f"How many positive even divisors does {n} have?",
    }[ask]
    answer = {"count": len(found), "sum": sum(found), "even": sum(d % 2 == 0 for d in found)}[ask]
    code = {
        "count": "print(len(divisors))", "sum": "print(sum(divisors))",
        "even": "print(len([d for d in divisors if d % 2 == 0]))",
    }[ask]  # fmt: skip
    plan: list[Step] = [
        (
            f"I list the divisors of {n}.",
            f"divisors = [d for d in range(1, {n} + 1) if {n} % d == 0]",
            "divisors",
        ),
        ("That gives the answer.", code, ""),
    ]
    return what, answer, plan, "The answer is {}."


def common(rng: Random) -> Draft:
    g = rng.randint(2, 30)
    a, b, c = (g * rng.randint(2, 40) for _ in range(3))
    gcd = rng.random() < 0.5
    name = "greatest common divisor" if gcd else "least common multiple"
    three = rng.random() < 0.4
    numbers = [a, b, c] if three else [a, b]
    listed = f"{a}, {b} and {c}" if three else f"{a} and {b}"
    function = "gcd" if gcd else "lcm"
    answer = (math.gcd if gcd else math.lcm)(*numbers)
    code = f"import math\nprint(math.{function}({', '.join(map(str, numbers))}))"
    question = pick(rng, f"What is the {name} of {listed}?", f"Find the {name} of {listed}.")
    return question, answer, [(f"The module math has the {name}.", code, "")], f"The {name} is {{}}."


def count_multiples(rng: Random) -> Draft:
    low, high = sorted(rng.sample(range(1, 1500), 2))
    a, b = rng.sample(range(2, 15), 2)
    how = rng.choice(("both", "or", "not"))
    text = {
        "both": f"are divisible by both {a} and {b}",
        "or": f"are divisible by {a} or by {b}",
        "not": f"are divisible by {a} but not by {b}",
    }[how]
    test = {"both": "n % {a} == 0 and n % {b} == 0", "or": "n % {a} == 0 or n % {b} == 0",
            "not": "n % {a} == 0 and n % {b} != 0"}[how].format(a=a, b=b)  # fmt: skip

    def upto(k: int, n: int) -> int:
        return n // k

    both = math.lcm(a, b)
    counts = [upto(k, high) - upto(k, low - 1) for k in (a, b, both)]
    answer = {"both": counts[2], "or": counts[0] + counts[1] - counts[2], "not": counts[0] - counts[2]}[how]
    question = f"How many integers from {low} to {high}, inclusive, {text}?"
    plan: list[Step] = [
        ("I collect the numbers.", f"found = [n for n in range({low}, {high} + 1) if {test}]", "found"),
        ("I count them.", "print(len(found))", ""),
    ]
    return question, answer, plan, "There are {} of them."


def digits(rng: Random) -> Draft:
    n, s = rng.choice((2, 3, 4)), rng.randint(3, 24)
    s = min(s, 9 * n)
    ways = [1] + [0] * s
    for place in range(n):
        new = [0] * (s + 1)
        for total, count in enumerate(ways):
            for digit in range(1 if place == 0 else 0, 10):
                if total + digit <= s:
                    new[total + digit] += count
        ways = new
    word = {2: "two", 3: "three", 4: "four"}[n]
    question = f"How many {word}-digit positive integers have digits that add up to {s}?"
    plan: list[Step] = [
        (f"I go through all {word}-digit numbers.", f"numbers = range({10 ** (n - 1)}, {10**n})", "numbers"),
        ("I count those with the right sum of digits.",
         f"print(sum(1 for n in numbers if sum(int(d) for d in str(n)) == {s}))", ""),
    ]  # fmt: skip
    return question, ways[s], plan, "There are {} such numbers."


def base_conversion(rng: Random) -> Draft:
    base, n = rng.randint(2, 9), rng.randint(20, 3000)
    shown, rest = "", n
    while rest:
        shown, rest = str(rest % base) + shown, rest // base
    if rng.random() < 0.5:
        question = pick(
            rng, f"What is ${shown}_{{{base}}}$ in base 10?", f"Convert ${shown}_{{{base}}}$ to base ten."
        )
        return (
            question,
            n,
            [("int can read other bases.", f"print(int('{shown}', {base}))", "")],
            ("In base 10 it is {}."),
        )
    plan: list[Step] = [
        ("I take the digits from the right.",
         f"n, shown = {n}, ''\nwhile n:\n    shown = str(n % {base}) + shown\n    n = n // {base}", "shown"),
        ("The digits together:", "print(shown)", ""),
    ]  # fmt: skip
    return f"Write {n} in base {base}.", shown, plan, f"In base {base} it is {{}}."


def choosing(rng: Random) -> Draft:
    n, k = rng.randint(5, 20), rng.randint(2, 5)
    m, j = rng.randint(4, 15), rng.randint(1, 3)
    kind = rng.choice(("one", "two", "order"))
    if kind == "one":
        question = pick(
            rng, f"In how many ways can a committee of {k} be chosen from {n} people?",
            f"How many ways are there to choose {k} of {n} books?",
        )  # fmt: skip
        answer = 1
        for i in range(k):
            answer = answer * (n - i) // (i + 1)
        return (
            question,
            answer,
            [("The order does not matter.", f"import math\nprint(math.comb({n}, {k}))", "")],
            ("There are {} ways."),
        )
    if kind == "order":
        answer = 1
        for i in range(k):
            answer *= n - i
        question = f"In how many ways can {k} of {n} runners take the first {k} places, without ties?"
        return (
            question,
            answer,
            [("The order matters.", f"import math\nprint(math.perm({n}, {k}))", "")],
            ("There are {} ways."),
        )
    question = (
        f"A club has {n} women and {m} men. In how many ways can a group of {k} women and {j} men be chosen?"
    )
    plan: list[Step] = [
        ("First the women.", f"import math\nwomen = math.comb({n}, {k})", "women"),
        ("Then the men.", f"men = math.comb({m}, {j})", "men"),
        ("Both choices are independent.", "print(women * men)", ""),
    ]
    return question, math.comb(n, k) * math.comb(m, j), plan, "There are {} ways."


def dice(rng: Random) -> Draft:
    n = rng.choice((2, 2, 3))
    faces = rng.choice((4, 6, 6, 6, 8))
    s = rng.randint(n + 1, n * faces - 1)
    total = sum(sum(roll) == s for roll in product(range(1, faces + 1), repeat=n))
    word = {2: "Two", 3: "Three"}[n]
    question = (
        f"{word} fair {faces}-sided dice with faces 1 to {faces} are rolled. What is the probability that "
        f"the sum is {s}? Give a common fraction."
    )
    plan: list[Step] = [
        ("I list all rolls.",
         f"from fractions import Fraction\nfrom itertools import product\n"
         f"rolls = list(product(range(1, {faces} + 1), repeat={n}))", ""),
        ("The good ones have the right sum.", f"good = [roll for roll in rolls if sum(roll) == {s}]", "good"),
        ("The probability is their share.", "print(Fraction(len(good), len(rolls)))", ""),
    ]  # fmt: skip
    return question, Fraction(total, faces**n), plan, "The probability is {}."


def balls(rng: Random) -> Draft:
    r, b = rng.randint(2, 9), rng.randint(2, 9)
    same = rng.random() < 0.5
    what = "both are of the same colour" if same else "both are red"
    question = (
        f"A bag holds {r} red and {b} blue balls. Two are drawn without replacement. What is the probability "
        f"that {what}?"
    )
    n = r + b
    good = r * (r - 1) + (b * (b - 1) if same else 0)
    code = f"math.comb({r}, 2)" + (f" + math.comb({b}, 2)" if same else "")
    plan: list[Step] = [
        (
            "The number of pairs:",
            f"import math\nfrom fractions import Fraction\npairs = math.comb({n}, 2)",
            "pairs",
        ),
        ("The good pairs:", f"good = {code}", "good"),
        ("The probability:", "print(Fraction(good, pairs))", ""),
    ]
    return question, Fraction(good, n * (n - 1)), plan, "The probability is {}."


def lattice_pairs(rng: Random) -> Draft:
    a, b, c = rng.randint(1, 7), rng.randint(1, 7), rng.randint(15, 90)
    answer = sum((c - a * x) % b == 0 for x in range(1, c // a + 1) if c - a * x > 0)
    first, second = ("" if k == 1 else str(k) for k in (a, b))
    question = f"How many pairs of positive integers $(x, y)$ satisfy ${first}x + {second}y = {c}$?"
    plan: list[Step] = [
        ("I try all pairs that are small enough.",
         f"sides = range(1, {c} + 1)\n"
         f"pairs = [(x, y) for x in sides for y in sides if {a} * x + {b} * y == {c}]",
         "pairs"),
        ("I count them.", "print(len(pairs))", ""),
    ]  # fmt: skip
    return question, answer, plan, "There are {} pairs."


def primes_between(rng: Random) -> Draft:
    low = rng.randint(2, 300)
    high = low + rng.randint(8, 120)
    found = [n for n in range(low, high + 1) if all(n % d for d in range(2, math.isqrt(n) + 1))]
    ask = rng.choice(("How many prime numbers are there", "What is the sum of the prime numbers"))
    plan: list[Step] = [
        (
            "A test for primes:",
            "def is_prime(n):\n    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))",
            "",
        ),
        (
            "The primes in the range:",
            f"primes = [n for n in range({low}, {high} + 1) if is_prime(n)]",
            "primes",
        ),
        ("Then:", "print(len(primes))" if ask.startswith("How") else "print(sum(primes))", ""),
    ]
    question = f"{ask} between {low} and {high}, inclusive?"
    return question, len(found) if ask.startswith("How") else sum(found), plan, "The answer is {}."


def letters(rng: Random) -> Draft:
    word = rng.choice(
        ("BANANA", "MISSISSIPPI", "LEVEL", "COMMITTEE", "TOOTH", "PEPPER", "ARRANGE", "STATISTICS", "COFFEE",
         "BALLOON", "SUCCESS", "PARALLEL", "ALGEBRA", "GEESE", "MATHEMATICS")
    )  # fmt: skip
    answer = math.factorial(len(word))
    for letter in set(word):
        answer //= math.factorial(word.count(letter))
    plan: list[Step] = [
        ("How often each letter occurs:",
         f"import math\nfrom collections import Counter\nword = '{word}'\ncounts = Counter(word)", ""),
        ("All orders of the letters:", "ways = math.factorial(len(word))", "ways"),
        ("Equal letters can be swapped, so I divide.",
         "for count in counts.values():\n    ways //= math.factorial(count)\nprint(ways)", ""),
    ]  # fmt: skip
    question = f"In how many different ways can the letters of {word} be arranged?"
    return question, answer, plan, "There are {} ways."


COUNTING: Final[tuple[Kind, ...]] = (
    remainder_of_power, units_digit, divisors, common, count_multiples, digits, base_conversion,
    choosing, dice, balls, lattice_pairs, primes_between, letters,
)  # fmt: skip
