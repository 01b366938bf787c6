"""Everyday questions about primes, divisors, remainders and digits."""

from __future__ import annotations

from random import Random

from trainer.quickstart.phrasing import ask_for, dress, order, whether, written
from trainer.quickstart.problems.base import (
    CLOSING,
    PlanBlock,
    PracticeProblem,
    digit_sum_of_product,
    one_block_problem,
)
from trainer.quickstart.problems.expressions import (
    Number,
    Operation,
    in_symbols,
    size,
)


def prime(rng: Random) -> PracticeProblem:
    n = size(rng, rng.choice((2, 3, 6, 11)))
    if rng.random() < 0.5:
        n |= 1
    shown = written(n, rng)
    question = rng.choice(
        ("is {n} prime", "is {n} a prime number", "is {n} a prime", "is the number {n} prime",
        "is {n} prime or composite",
         "prime or not: {n}", "{n} prime", "is {n} a prime or not", "is {n} composite or prime",
         "{n} is prime, right",
         "{n} is a prime number", "{n} - is it prime", "primality of {n}", "can {n} be prime",
         "{n}: is this a prime")
    ).format(n=shown)  # fmt: skip
    claim = rng.choice(
        ("{n} is prime", "{n} is a prime", "{n} is a prime number", "the number {n} is prime")
    ).format(n=shown)
    code = f"n = {n}\nprint(n > 1 and all(n % d for d in range(2, int(n ** 0.5) + 1)))"
    text = dress(whether(claim, question, rng), rng)
    return one_block_problem("prime", text, str(_is_prime(n)), code, "I try each divisor.")


def _is_prime(n: int) -> bool:
    """Return True if n is prime: Miller's test with bases that are sufficient for n below 3.4e14."""
    if n < 2:
        return False
    bases = (2, 3, 5, 7, 11, 13, 17)
    if any(n % p == 0 for p in bases):
        return n in bases
    twos = (n - 1 & 1 - n).bit_length() - 1
    return all(
        (x := pow(a, (n - 1) >> twos, n)) == 1 or any(pow(x, 1 << i, n) == n - 1 for i in range(twos))
        for a in bases
    )


def divisible(rng: Random) -> PracticeProblem:
    """Return a question whether a number is even, odd or a multiple of another number."""
    n = size(rng, 9)
    shown = written(n, rng)
    if rng.random() < 0.6:
        parity, remainder = rng.choice((("even", 0), ("odd", 1)))
        question = rng.choice(("is {n} {p}", "is {n} an {p} number", "is the number {n} {p}")).format(
            n=shown, p=parity
        )
        claim = rng.choice(("{n} is {p}", "{n} is an {p} number")).format(n=shown, p=parity)
        code, answer = f"print({n} % 2 == {remainder})", n % 2 == remainder
    else:
        k = rng.randint(2, 99)
        n = n * k if rng.random() < 0.5 else n
        question = rng.choice(
            (
                "is {n} divisible by {k}",
                "is {n} a multiple of {k}",
                "does {k} divide {n}",
                "can {n} be divided by {k}",
            )
        ).format(n=n, k=k)
        claim = rng.choice(("{n} is divisible by {k}", "{n} is a multiple of {k}")).format(n=n, k=k)
        code, answer = f"print({n} % {k} == 0)", n % k == 0
    return one_block_problem("divisible", dress(whether(claim, question, rng), rng), str(answer), code)


def remainder(rng: Random) -> PracticeProblem:
    a, b = size(rng, 10), size(rng, 5)
    x, y = written(a, rng), written(b, rng)
    phrase = rng.choice(
        ("the remainder of {a} divided by {b}", "the remainder of {a} / {b}",
        "the remainder when {a} is divided by {b}",
         "{a} modulo {b}", "{a} mod {b}", "{a} % {b}", "{a}%{b}", "the rest of {a} divided by {b}",
         "{a} modulus {b}",
         "the remainder of dividing {a} by {b}", "remainder of {a} by {b}", "remainder {a} / {b}",
         "the rest when dividing {a} by {b}",
         "the remainder if you divide {a} by {b}")
    ).format(a=x, b=y)  # fmt: skip
    return one_block_problem("remainder", dress(ask_for(phrase, rng), rng), a % b, f"print({a} % {b})")


def divisor(rng: Random) -> PracticeProblem:
    g = size(rng, 3)
    a, b = g * size(rng, 3), g * size(rng, 3)
    name = rng.choice(
        ("gcd", "greatest common divisor", "greatest common factor", "highest common factor",
        "largest common divisor",
         "hcf", "gcf", "biggest common divisor", "largest common factor")
    )  # fmt: skip
    phrase = _of_two(name, a, b, rng)
    code = f"import math\nprint(math.gcd({a}, {b}))"
    return one_block_problem(
        "divisor", dress(ask_for(phrase, rng), rng), _gcd(a, b), code, "The gcd is in math."
    )


def multiple(rng: Random) -> PracticeProblem:
    """Return a question for a least common multiple. The first attempt of the plan lacks an import."""
    a, b = size(rng, 5), size(rng, 5)
    name = rng.choice(("lcm", "least common multiple", "lowest common multiple", "smallest common multiple"))
    plan = (
        PlanBlock("I take the lcm.", f"print(math.lcm({a}, {b}))", run=True),
        PlanBlock("The import is missing.", f"import math\nprint(math.lcm({a}, {b}))", run=True),
    )
    text = dress(ask_for(_of_two(name, a, b, rng), rng), rng)
    return PracticeProblem("multiple", text, a * b // _gcd(a, b), plan, CLOSING)


def _of_two(name: str, a: int, b: int, rng: Random) -> str:
    x, y = written(a, rng), written(b, rng)
    the = rng.choice(("the ", "the ", "", "a "))
    form = rng.choice(
        (
            "{name} of {x} and {y}",
            "{name} of {x}, {y}",
            "{name}({x}, {y})",
            "{name} of {x} & {y}",
            "{name} {x} {y}",
            "{name} {x} and {y}",
        )
    )
    return ("" if "(" in form else the) + form.format(name=name, x=x, y=y)


def _gcd(a: int, b: int) -> int:
    while b:
        a, b = b, a % b
    return a


def digit_sum(rng: Random) -> PracticeProblem:
    """Return a question about the digits of a number, product or power."""
    kind = rng.random()
    if kind < 0.5:
        n = size(rng, 12)
        of, answer = written(n, rng), n
        plan: tuple[PlanBlock, ...] = (
            PlanBlock("Its digits are added.", f"print(sum(int(d) for d in str({n})))", run=True),
        )
    elif kind < 0.75:
        a, b = size(rng, 7), size(rng, 7)
        of = in_symbols(Operation("*", Number(a, str(a)), Number(b, str(b))), rng)
        if rng.random() < 0.5:
            of = rng.choice((f"{a} times {b}", f"the product of {a} and {b}", f"{a} multiplied by {b}"))
        answer = a * b
        plan = digit_sum_of_product(a, b)
    else:
        a, n = rng.randint(2, 999), rng.randint(2, 99)
        of = rng.choice(
            (
                "{a} to the power {n}",
                "{a} to the power of {n}",
                "{a}^{n}",
                "{a} ** {n}",
                "{a}**{n}",
                "{a} ^ {n}",
            )
        ).format(a=a, n=n)
        answer = a**n
        plan = (
            PlanBlock("I call the power n.", f"n = {a} ** {n}", name="n"),
            PlanBlock("Its digits are added.", "print(sum(int(d) for d in str(n)))", run=True),
        )
    if rng.random() < 0.5:
        phrase = rng.choice(
            ("the sum of the digits of {of}", "the digit sum of {of}", "sum of digits of {of}",
            "digit sum of {of}",
             "the total of the digits of {of}", "the sum of all digits of {of}", "the cross sum of {of}",
             "the sum of the digits in {of}", "the digit sum for {of}", "the sum of the figures of {of}")
        )  # fmt: skip
        text = ask_for(phrase.format(of=of), rng)
    else:
        command = rng.choice(
            ("add up the digits of {of}", "sum the digits of {of}", "add the digits of {of}",
            "add all digits of {of}",
             "sum up the digits of {of}", "add up all the digits in {of}", "total the digits of {of}")
        )  # fmt: skip
        text = order(command.format(of=of), rng)
    return PracticeProblem("digit_sum", dress(text, rng), sum(map(int, str(answer))), plan, CLOSING)


def divisors(rng: Random) -> PracticeProblem:
    """Return a question for the sum or number of divisors."""
    n = size(rng, 5)
    shown = written(n, rng)
    found = [d for d in range(1, n + 1) if n % d == 0]
    if rng.random() < 0.6:
        phrase = rng.choice(
            ("the sum of all divisors of {n}", "the sum of the divisors of {n}",
            "the sum of the factors of {n}",
             "add up the divisors of {n}", "sum the divisors of {n}", "add the divisors of {n}",
             "add up all factors of {n}",
             "the total of all divisors of {n}", "sum of divisors of {n}")
        )  # fmt: skip
        code, answer = f"n = {n}\nprint(sum(d for d in range(1, n + 1) if n % d == 0))", sum(found)
    else:
        phrase = rng.choice(
            ("the number of divisors of {n}", "how many divisors does {n} have", "how many divisors has {n}",
             "count the divisors of {n}", "how many factors does {n} have", "how many numbers divide {n}",
             "the count of divisors of {n}")
        )  # fmt: skip
        code, answer = f"n = {n}\nprint(sum(1 for d in range(1, n + 1) if n % d == 0))", len(found)
    phrase = phrase.format(n=shown)
    text = (
        ask_for(phrase, rng)
        if phrase.startswith(("the ", "sum of"))
        else phrase
        if phrase.startswith("how")
        else order(phrase, rng)
    )
    return one_block_problem("divisors", dress(text, rng), answer, code, "I try each divisor.")
