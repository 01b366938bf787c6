"""Everyday questions: numbers of any size, in many wordings. The plans are those of the larger problems."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Final

from trainer.quickstart.phrasing import ask_for, dress, order, whether, written
from trainer.quickstart.problems.expressions import (
    Node,
    Number,
    Operation,
    expression,
    has_factorial,
    in_speech,
    in_symbols,
    number,
    python,
    size,
    value_of,
)
from trainer.quickstart.problems.sampled import Block, Problem
from trainer.quickstart.vocabulary import NAMES, NOUNS, made_up_word

CLOSING: Final = "The answer is {}."
CALCULATE: Final = "I let Python calculate it."


def _one_block(family: str, text: str, answer: int | str, code: str, reason: str = CALCULATE) -> Problem:
    return Problem(family, text, answer, (Block(reason, code, run=True),), CLOSING)


def _shown(value: float) -> int | str:
    """The line that Python prints for ``value``."""
    return value if isinstance(value, int) else str(value)


def calculation(rng: Random) -> Problem:
    """An expression in symbols or in words, or a command that spells one out."""
    kind = rng.random()
    if kind < 0.15:
        return _command(rng)
    if kind < 0.25:
        return _noun(rng)
    spelled = kind < 0.45
    node = expression(rng, spelled=spelled)
    said = in_speech(node, rng) if spelled else in_symbols(node, rng)
    return _calculated(node, dress(ask_for(said, rng), rng))


def _calculated(node: Node, text: str) -> Problem:
    match node:
        case Operation(
            "+" | "-" as sign,
            Operation("*", Number(), Number()) as first,
            Operation("*", Number(), Number()) as second,
        ):
            return Problem(
                "calculation",
                text,
                _shown(value_of(node)),
                (
                    Block("First the product p.", f"p = {python(first)}".replace("(", "").replace(")",
                    ""), name="p"),
                    Block("Then the product q.", f"q = {python(second)}".replace("(", "").replace(")",
                    ""), name="q"),
                    Block(
                        f"The value to read is p {'plus' if sign == '+' else 'minus'} q.",
                        f"print(p {sign} q)",
                        run=True,
                    ),
                ),
                CLOSING,
            )  # fmt: skip
    imported = "import math\n" if has_factorial(node) else ""
    return _one_block("calculation", text, _shown(value_of(node)), f"{imported}print({python(node)})")


def _pair(rng: Random) -> tuple[Number, Number]:
    return number(rng, spelled=True), number(rng, spelled=True)


def _command(rng: Random) -> Problem:
    """``add 3 to 4``."""
    a, b = _pair(rng)
    sign = rng.choice("++--**/")
    if sign == "/" and b.value == 0:
        sign = "*"
    swapped = False
    if sign == "+":
        more = [number(rng, spelled=True) for _ in range(rng.choice((0, 0, 0, 1, 2)))]
        if more:
            verb = rng.choice(("add", "sum", "sum up", "add up", "add together", "total", "count together"))
            numbers = [a, b, *more]
            listed = (
                ", ".join(n.text for n in numbers[:-1])
                + rng.choice((" and ", ", and ", ", ", " & "))
                + numbers[-1].text
            )
            node: Node = a
            for n in numbers[1:]:
                node = Operation("+", node, n)
            return _calculated(node, dress(order(f"{verb} {listed}", rng), rng))
        form, swapped = rng.choice(
            (("add {a} and {b}", False), ("add {a} to {b}", False), ("sum {a} and {b}", False),
            ("add up {a} and {b}", False),
             ("add {a} with {b}", False), ("put {a} on top of {b}", False), ("combine {a} with {b}", False),
             ("increase {a} by {b}", False), ("take {a} and add {b}", False))
        )  # fmt: skip
    elif sign == "-":
        form, swapped = rng.choice(
            (("subtract {b} from {a}", False), ("take {b} from {a}", False), ("take {b} off {a}", False),
             ("remove {b} from {a}", False), ("take {a} and subtract {b}", False),
             ("decrease {a} by {b}", False),
             ("reduce {a} by {b}", False), ("start with {a} and take away {b}", False))
        )  # fmt: skip
    elif sign == "*":
        form, swapped = rng.choice(
            (("multiply {a} by {b}", False), ("multiply {a} and {b}", False),
            ("multiply {a} with {b}", False),
             ("multiply {a} times {b}", False), ("take {a} and multiply it by {b}", False),
             ("take {a} times {b}", False))
        )  # fmt: skip
    else:
        form, swapped = rng.choice(
            (("divide {a} by {b}", False), ("split {a} into {b} parts", False),
            ("divide {a} into {b} equal parts", False),
             ("share {a} between {b}", False), ("take {a} and divide it by {b}", False))
        )  # fmt: skip
    node = Operation(sign, b, a) if swapped else Operation(sign, a, b)
    return _calculated(node, dress(order(form.format(a=a.text, b=b.text), rng), rng))


def _noun(rng: Random) -> Problem:
    """``the sum of 3 and 4``, ``half of 10``."""
    a, b = _pair(rng)
    the = rng.choice(("the ", "the ", ""))
    sign, form = rng.choice(
        (("+", "sum of {a} and {b}"), ("+", "total of {a} and {b}"), ("+", "sum: {a} and {b}"),
         ("-", "difference between {a} and {b}"), ("-", "difference of {a} and {b}"),
         ("*", "product of {a} and {b}"), ("*", "product of {a} with {b}"), ("/", "quotient of {a} and {b}"),
         ("/", "ratio of {a} to {b}"), ("+", "{a} increased by {b}"), ("-", "{a} decreased by {b}"),
         ("-", "{a} reduced by {b}"))
    )  # fmt: skip
    if sign == "/" and b.value == 0:
        return _noun(rng)
    if form.startswith("{"):
        the = ""
    return _calculated(Operation(sign, a, b), dress(ask_for(the + form.format(a=a.text, b=b.text), rng), rng))


def scaled(rng: Random) -> Problem:
    """Half, double, a percentage."""
    a = number(rng, spelled=True, largest=8)
    form, code = rng.choice(
        (("half of {a}", "{n} / 2"), ("half {a}", "{n} / 2"), ("a half of {a}", "{n} / 2"), ("double {a}",
        "{n} * 2"),
         ("the double of {a}", "{n} * 2"), ("twice {a}", "{n} * 2"), ("two times {a}", "2 * {n}"),
         ("triple {a}", "{n} * 3"),
         ("a third of {a}", "{n} / 3"), ("a quarter of {a}", "{n} / 4"), ("a tenth of {a}", "{n} / 10"))
        if rng.random() < 0.4
        else (("{p}% of {a}", "{p} * {n} / 100"), ("{p} % of {a}", "{p} * {n} / 100"),
              ("{p} percent of {a}", "{p} * {n} / 100"), ("{p} per cent of {a}", "{p} * {n} / 100"))
    )  # fmt: skip
    p = rng.randint(1, 120)
    code = code.format(p=p, n=a.value)
    text = form.format(p=p, a=a.text)
    verb = form.startswith(("double", "triple", "half {"))
    asked = order(text, rng) if verb and rng.random() < 0.5 else ask_for(text, rng)
    return _one_block("scaled", dress(asked, rng), _evaluated(code), f"print({code})")


def _evaluated(code: str) -> int | str:
    """The value of ``a op b [op c]`` with numbers only, from left to right."""
    first, *rest = code.split(" ")
    value: float = _parsed(first)
    for sign, operand in zip(rest[::2], rest[1::2], strict=True):
        value = value * _parsed(operand) if sign == "*" else value / _parsed(operand)
    return _shown(value)


def _parsed(text: str) -> float:
    return float(text) if "." in text else int(text)


def power(rng: Random) -> Problem:
    """Squares, cubes, powers."""
    kind = rng.random()
    if kind < 0.5:
        exponent = rng.choice((2, 2, 3))
        base = size(rng, 8)
        shown = written(base, rng, spelled=True)
        forms = (
            ("{a} squared", "the square of {a}", "square {a}", "{a}²", "the second power of {a}")
            if exponent == 2
            else ("{a} cubed", "the cube of {a}", "cube {a}", "{a}³", "the third power of {a}")
        )
        said = rng.choice(forms).format(a=shown)
    else:
        base, exponent = size(rng, 4), rng.randint(2, 12)
        if rng.random() < 0.3:
            base, exponent = rng.randint(2, 12), rng.randint(10, 99)
        ordinal = "th" if 10 < exponent % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(exponent % 10, "th")
        said = rng.choice(
            ("{a} to the power of {n}", "{a} to the power {n}", "{a} to the {n}{o}",
            "{a} to the {n}{o} power", "{a}^{n}",
             "{a} ** {n}", "{a}**{n}", "{a} ^ {n}", "the {n}{o} power of {a}",
             "{a} raised to the {n}{o} power",
             "raise {a} to the power {n}", "raise {a} to the power of {n}", "raise {a} to the {n}{o} power",
             "{a} raised to {n}",
             "{a} to the {n}")
        ).format(a=written(base, rng, spelled=True), n=exponent, o=ordinal)  # fmt: skip
    verb = said.startswith(("square ", "cube ", "raise "))
    text = order(said, rng) if verb else ask_for(said, rng)
    return _one_block("power", dress(text, rng), base**exponent, f"print({base} ** {exponent})")


def factorial(rng: Random) -> Problem:
    n = rng.randint(0, 30)
    said = rng.choice(
        (
            "{n}!",
            "{n}!",
            "{n} !",
            "{n} factorial",
            "the factorial of {n}",
            "factorial of {n}",
            "factorial {n}",
            "factorial({n})",
        )
    ).format(n=n)
    return _one_block(
        "factorial",
        dress(ask_for(said, rng), rng),
        math.factorial(n),
        f"import math\nprint(math.factorial({n}))",
    )


def factorial_quotient(rng: Random) -> Problem:
    """``17!/15!`` and the like, alone or with one more step."""
    a = rng.randint(3, 40)
    b = rng.randint(1, a)
    gap = rng.choice(("", "", " "))
    said = rng.choice(
        (f"{a}!{gap}{rng.choice('//÷')}{gap}{b}!", f"{a}! divided by {b}!",
        f"{a} factorial divided by {b} factorial",
         f"{a}! over {b}!", f"{a} factorial over {b} factorial")
    )  # fmt: skip
    code = f"import math\nprint(math.factorial({a}) // math.factorial({b}))"
    value = math.prod(range(b + 1, a + 1))
    return _one_block("factorial_quotient", dress(ask_for(said, rng), rng), value, code)


def square_root(rng: Random) -> Problem:
    root = size(rng, 5)
    n = root * root if rng.random() < 0.6 else size(rng, 7)
    shown = written(n, rng)
    said = rng.choice(
        (
            "the square root of {n}",
            "square root of {n}",
            "sqrt({n})",
            "sqrt {n}",
            "the root of {n}",
            "√{n}",
            "sqrt of {n}",
            "√ {n}",
        )
    ).format(n=shown)
    return _one_block(
        "square_root",
        dress(ask_for(said, rng), rng),
        str(math.sqrt(n)),
        f"import math\nprint(math.sqrt({n}))",
    )


def prime(rng: Random) -> Problem:
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
    return _one_block("prime", text, str(_is_prime(n)), code, "I try each divisor.")


def _is_prime(n: int) -> bool:
    """Miller's test with the bases that decide every n below 3.4e14."""
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


def divisible(rng: Random) -> Problem:
    """Even, odd, or a multiple of another number."""
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
    return _one_block("divisible", dress(whether(claim, question, rng), rng), str(answer), code)


def remainder(rng: Random) -> Problem:
    a, b = size(rng, 10), size(rng, 5)
    x, y = written(a, rng), written(b, rng)
    said = rng.choice(
        ("the remainder of {a} divided by {b}", "the remainder of {a} / {b}",
        "the remainder when {a} is divided by {b}",
         "{a} modulo {b}", "{a} mod {b}", "{a} % {b}", "{a}%{b}", "the rest of {a} divided by {b}",
         "{a} modulus {b}",
         "the remainder of dividing {a} by {b}", "remainder of {a} by {b}", "remainder {a} / {b}",
         "the rest when dividing {a} by {b}",
         "the remainder if you divide {a} by {b}")
    ).format(a=x, b=y)  # fmt: skip
    return _one_block("remainder", dress(ask_for(said, rng), rng), a % b, f"print({a} % {b})")


def divisor(rng: Random) -> Problem:
    g = size(rng, 3)
    a, b = g * size(rng, 3), g * size(rng, 3)
    name = rng.choice(
        ("gcd", "greatest common divisor", "greatest common factor", "highest common factor",
        "largest common divisor",
         "hcf", "gcf", "biggest common divisor", "largest common factor")
    )  # fmt: skip
    said = _of_two(name, a, b, rng)
    code = f"import math\nprint(math.gcd({a}, {b}))"
    return _one_block("divisor", dress(ask_for(said, rng), rng), _gcd(a, b), code, "The gcd is in math.")


def multiple(rng: Random) -> Problem:
    """The first try forgets the import, as for the larger problems."""
    a, b = size(rng, 5), size(rng, 5)
    name = rng.choice(("lcm", "least common multiple", "lowest common multiple", "smallest common multiple"))
    plan = (
        Block("I take the lcm.", f"print(math.lcm({a}, {b}))", run=True),
        Block("The import is missing.", f"import math\nprint(math.lcm({a}, {b}))", run=True),
    )
    text = dress(ask_for(_of_two(name, a, b, rng), rng), rng)
    return Problem("multiple", text, a * b // _gcd(a, b), plan, CLOSING)


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


def digit_sum(rng: Random) -> Problem:
    """The digits of a number, of a product or of a power."""
    kind = rng.random()
    if kind < 0.5:
        n = size(rng, 12)
        of, answer = written(n, rng), n
        plan: tuple[Block, ...] = (
            Block("Its digits are added.", f"print(sum(int(d) for d in str({n})))", run=True),
        )
    elif kind < 0.75:
        a, b = size(rng, 7), size(rng, 7)
        of = in_symbols(Operation("*", Number(a, str(a)), Number(b, str(b))), rng)
        if rng.random() < 0.5:
            of = rng.choice((f"{a} times {b}", f"the product of {a} and {b}", f"{a} multiplied by {b}"))
        answer = a * b
        plan = (
            Block("I call the product n.", f"n = {a} * {b}", name="n"),
            Block("Now its digits.", "print(sum(n))", run=True),
            Block(
                "A number must be made a string first.",
                f"n = {a} * {b}\nprint(sum(int(d) for d in str(n)))",
                run=True,
            ),
        )
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
            Block("I call the power n.", f"n = {a} ** {n}", name="n"),
            Block("Its digits are added.", "print(sum(int(d) for d in str(n)))", run=True),
        )
    if rng.random() < 0.5:
        said = rng.choice(
            ("the sum of the digits of {of}", "the digit sum of {of}", "sum of digits of {of}",
            "digit sum of {of}",
             "the total of the digits of {of}", "the sum of all digits of {of}", "the cross sum of {of}",
             "the sum of the digits in {of}", "the digit sum for {of}", "the sum of the figures of {of}")
        )  # fmt: skip
        text = ask_for(said.format(of=of), rng)
    else:
        command = rng.choice(
            ("add up the digits of {of}", "sum the digits of {of}", "add the digits of {of}",
            "add all digits of {of}",
             "sum up the digits of {of}", "add up all the digits in {of}", "total the digits of {of}")
        )  # fmt: skip
        text = order(command.format(of=of), rng)
    return Problem("digit_sum", dress(text, rng), sum(map(int, str(answer))), plan, CLOSING)


def divisors(rng: Random) -> Problem:
    """The sum or the count of the divisors of a number."""
    n = size(rng, 5)
    shown = written(n, rng)
    found = [d for d in range(1, n + 1) if n % d == 0]
    if rng.random() < 0.6:
        said = rng.choice(
            ("the sum of all divisors of {n}", "the sum of the divisors of {n}",
            "the sum of the factors of {n}",
             "add up the divisors of {n}", "sum the divisors of {n}", "add the divisors of {n}",
             "add up all factors of {n}",
             "the total of all divisors of {n}", "sum of divisors of {n}")
        )  # fmt: skip
        code, answer = f"n = {n}\nprint(sum(d for d in range(1, n + 1) if n % d == 0))", sum(found)
    else:
        said = rng.choice(
            ("the number of divisors of {n}", "how many divisors does {n} have", "how many divisors has {n}",
             "count the divisors of {n}", "how many factors does {n} have", "how many numbers divide {n}",
             "the count of divisors of {n}")
        )  # fmt: skip
        code, answer = f"n = {n}\nprint(sum(1 for d in range(1, n + 1) if n % d == 0))", len(found)
    said = said.format(n=shown)
    text = (
        ask_for(said, rng)
        if said.startswith(("the ", "sum of"))
        else said
        if said.startswith("how")
        else order(said, rng)
    )
    return _one_block("divisors", dress(text, rng), answer, code, "I try each divisor.")


def ranges(rng: Random) -> Problem:
    """Sums over ``a`` to ``b``: the numbers themselves, their squares or cubes."""
    a = 1 if rng.random() < 0.5 else size(rng, 4)
    b = a + size(rng, 3)
    what, exponent = rng.choice(
        (("numbers", 1), ("whole numbers", 1), ("integers", 1), ("all numbers", 1), ("natural numbers", 1),
        ("", 1),
         ("squares", 2), ("square numbers", 2), ("cubes", 3), ("all whole numbers", 1), ("all integers", 1))
    )  # fmt: skip
    to = rng.choice((" to ", " to ", " up to ", " through ", " until ", "-"))
    start, end = written(a, rng), written(b, rng)
    span = f"from {start}{to}{end}" if rng.random() < 0.8 else f"between {start} and {end}"
    if what:
        noun = f"{what} {span}"
        the = rng.choice(("the ", "the ", "", "all the ")) if not what.startswith("all") else ""
        said = rng.choice(
            (
                "the sum of {t}{x}",
                "sum of {t}{x}",
                "the total of {t}{x}",
                "add up {t}{x}",
                "add {t}{x}",
                "sum {t}{x}",
                "sum up {t}{x}",
            )
        )
        said = said.format(t=the, x=noun)
    else:
        said = rng.choice(
            (
                f"the sum {span}",
                f"1 + 2 + 3 + ... + {b}",
                f"1+2+...+{b}",
                f"sum everything {span}",
                f"the sum of {start}{to}{end}",
            )
        )
        a = 1 if "..." in said else a
    text = order(said, rng) if said.startswith(("add", "sum up", "sum every")) else ask_for(said, rng)
    if exponent == 1:
        code = f"print(sum(range({a}, {b} + 1)))"
    else:
        code = f"print(sum(k ** {exponent} for k in range({a}, {b} + 1)))"
    reason = {1: "I add the numbers.", 2: "I add the squares.", 3: "I add the cubes."}[exponent]
    answer = sum(k**exponent for k in range(a, b + 1))
    return _one_block("ranges", dress(text, rng), answer, code, reason)


def chain(rng: Random) -> Problem:
    """Steps one after another, each of them a block that waits; the last one runs all."""
    start = number(rng, spelled=True, largest=6)
    forms = {
        "+": ("add {}", "then add {}", "plus {}", "increase it by {}", "and add {}"),
        "-": ("subtract {}", "take away {}", "then subtract {}", "minus {}", "decrease it by {}"),
        "*": (
            "multiply by {}",
            "multiply it by {}",
            "then multiply by {}",
            "times {}",
            "multiply the result by {}",
        ),
    }
    value = start.value
    said = [
        rng.choice(
            (
                "start with {}",
                "take {}",
                "take the number {}",
                "begin with {}",
                "i think of {}",
                "let n be {}",
            )
        ).format(start.text)
    ]
    blocks = [Block("I call the start n.", f"n = {start.value}", name="n")]
    for _ in range(rng.choice((2, 2, 3))):
        sign = rng.choice("+-*")
        step = number(rng, spelled=True, largest=4)
        value = (
            value + step.value if sign == "+" else value - step.value if sign == "-" else value * step.value
        )
        said.append(rng.choice(forms[sign]).format(step.text))
        blocks.append(
            Block(
                {"+": "I add.", "-": "I subtract.", "*": "I multiply."}[sign],
                f"n = n {sign} {step.value}",
                name="n",
            )
        )
    blocks.append(Block("The value to read is n.", "print(n)", run=True))
    sep = rng.choice((", ", ", ", ". ", "; ", ", then "))
    text = sep.join(said) + rng.choice(
        (
            "",
            "",
            sep.rstrip(" then")
            + " "
            + rng.choice(
                ("what is it", "what do i get", "what is n", "what is the result", "how much is it")
            ),
        )
    )
    return Problem("chain", dress(text, rng), _shown(value), tuple(blocks), CLOSING)


def story(rng: Random) -> Problem:
    """A sentence or two about things that are counted."""
    who = rng.choice(
        (*NAMES, "i", "my friend", "a farmer", "the teacher", "she", "he", "we", made_up_word(rng).title())
    )
    thing = rng.choice(
        (
            rng.choice(NOUNS) + "s",
            made_up_word(rng) + "s",
            "apples",
            "coins",
            "eggs",
            "balls",
            "cards",
            "books",
            "sweets",
        )
    )
    box = rng.choice(
        (rng.choice(NOUNS) + "s", "boxes", "bags", "rows", "crates", "jars", "packs", made_up_word(rng) + "s")
    )
    a, b, c = (size(rng, 4) for _ in range(3))
    has = "have" if who in ("i", "we") else "has"
    kind = rng.choice(("times", "times", "plus", "plus", "minus", "minus", "share", "price", "left"))
    x, y, z = (written(v, rng, spelled=True) for v in (a, b, c))
    many = rng.choice(("how many", "how many"))
    answer: int | str
    if kind == "times":
        text = rng.choice(
            (f"{who} {has} {x} {box} with {y} {thing} in each",
            f"there are {x} {box} and each has {y} {thing}",
             f"{x} {box} of {y} {thing} each", f"each of {x} {box} holds {y} {thing}",
             f"{x} {box} with {y} {thing} each",
             f"{who} fills {x} {box} with {y} {thing} each", f"{x} {box} contain {y} {thing} each",
             f"every one of the {x} {box} has {y} {thing}")
        )  # fmt: skip
        end = rng.choice(
            (
                f"{many} {thing} are there",
                f"{many} {thing} in total",
                f"{many} {thing} is that",
                f"{many} {thing} altogether",
                f"what is the total number of {thing}",
                f"{many} {thing} {'do' if has == 'have' else 'does'} {who} have",
            )
        )
        code, answer = f"{a} * {b}", a * b
    elif kind == "plus":
        text = rng.choice(
            (f"{who} {has} {x} {thing} and buys {y} more", f"{who} {has} {x} {thing} and finds {y} more",
             f"{who} {has} {x} {thing}. then {who} gets another {y}",
             f"there are {x} {thing} here and {y} {thing} there",
             f"there were {x} {thing} and {y} more came", f"{who} had {x} {thing} and was given {y} more",
             f"{x} {thing} are in the box and {y} are added",
             f"{who} collects {x} {thing} on monday and {y} on tuesday",
             f"{who} {has} {x} {thing}, a friend {has} {y} {thing}")
        )  # fmt: skip
        end = rng.choice(
            (
                f"{many} {thing} are there now",
                f"{many} {thing} in total",
                f"{many} {thing} altogether",
                f"{many} is that",
                f"{many} {thing} {'do' if has == 'have' else 'does'} {who} have",
                f"{many} {thing} together",
            )
        )
        code, answer = f"{a} + {b}", a + b
    elif kind == "minus":
        a, b, x, y = (a, b, x, y) if a > b else (b, a, y, x)
        text = rng.choice(
            (f"{who} {has} {x} {thing} and gives away {y}", f"{who} {has} {x} {thing} and loses {y} of them",
             f"there were {x} {thing} and {y} were sold", f"{who} had {x} {thing} and ate {y}",
             f"of {x} {thing} {y} are broken",
             f"{y} of the {x} {thing} are gone", f"{who} {has} {x} {thing} and sells {y}",
             f"there are {x} {thing}. {y} go away",
             f"out of {x} {thing}, {y} were lost", f"{x} {thing} were there, {y} left")
        )  # fmt: skip
        end = rng.choice(
            (
                f"{many} are left",
                f"{many} {thing} remain",
                f"{many} {thing} are left",
                f"{many} {thing} {'do' if has == 'have' else 'does'} {who} still have",
                f"{many} are still there",
            )
        )
        # The larger one first, whichever is named first.
        code, answer = f"{a} - {b}", a - b
    elif kind == "share":
        k = rng.randint(2, 40)
        n = k * size(rng, 3)
        people = rng.choice(("friends", "children", "people", "kids", "students", made_up_word(rng) + "s"))
        text = rng.choice(
            (f"{n} {thing} are shared equally among {k} {people}", f"{k} {people} share {n} {thing}",
             f"{n} {thing} are divided between {k} {people}",
             f"{who} gives {n} {thing} to {k} {people}, all get the same",
             f"{k} {people} split {n} {thing} equally")
        )  # fmt: skip
        end = rng.choice(
            (
                f"{many} does each get",
                f"{many} {thing} for each",
                f"{many} {thing} does each one have",
                f"{many} for each of them",
                "what does each get",
            )
        )
        code, answer = f"{n} / {k}", str(n / k)
    elif kind == "price":
        unit = rng.choice(("dollars", "euros", "cents", "pounds", "coins", "$", "francs"))
        text = rng.choice(
            (f"one of the {thing} costs {y} {unit}. {who} buys {x}",
            f"{who} buys {x} {thing} at {y} {unit} each",
             f"{x} {thing} cost {y} {unit} each", f"the price is {y} {unit} for one. {who} {has} {x} {thing}",
             f"a {thing[:-1]} costs {y} {unit}, and {who} takes {x} of them")
        )  # fmt: skip
        end = rng.choice(
            (
                "how much is that",
                "what is the price",
                f"how many {unit} is that",
                "how much must be paid",
                "what do they cost",
                "what is the total",
                "how much does it cost",
            )
        )
        code, answer = (f"{b} * {a}", a * b) if text.find(y) < text.find(x) else (f"{a} * {b}", a * b)
    else:
        text = rng.choice(
            (f"{who} {has} {x} {box} with {y} {thing} in each. {z} {thing} are lost",
            f"{x} {box} hold {y} {thing} each, but {z} are broken",
             f"{who} packs {x} {box} with {y} {thing} each and sells {z} {thing}")
        )  # fmt: skip
        end = rng.choice((f"{many} are left", f"{many} {thing} remain", f"{many} {thing} are left"))
        plan = (
            Block("First all of them.", f"total = {a} * {b}", name="total"),
            Block(f"What is left is total minus {c}.", f"print(total - {c})", run=True),
        )
        return Problem("story", dress(text + rng.choice((". ", ", ")) + end, rng), a * b - c, plan, CLOSING)
    text = (
        f"{text}{rng.choice(('. ', ', ', '. ', ' - '))}{end}" if rng.random() < 0.85 else f"{end} if {text}"
    )
    return _one_block("story", dress(text, rng), answer, f"print({code})")


NATURAL: Final[dict[Callable[[Random], Problem], int]] = {
    calculation: 45,
    scaled: 5,
    power: 5,
    factorial: 3,
    factorial_quotient: 3,
    square_root: 2,
    prime: 5,
    divisible: 2,
    remainder: 4,
    divisor: 4,
    multiple: 3,
    digit_sum: 5,
    divisors: 3,
    ranges: 4,
    chain: 4,
    story: 8,
}
"""Families by weight."""


def natural_question(rng: Random) -> Problem:
    """A question of a random family."""
    [family] = rng.choices(tuple(NATURAL), tuple(NATURAL.values()))
    return family(rng)
