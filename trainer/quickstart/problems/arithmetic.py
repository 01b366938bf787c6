"""Everyday questions of arithmetic: expressions, powers, factorials and roots."""

from __future__ import annotations

import math
from random import Random

from trainer.quickstart.phrasing import ask_for, dress, order, written
from trainer.quickstart.problems.base import (
    CLOSING,
    PlanBlock,
    PracticeProblem,
    as_answer,
    one_block_problem,
)
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


def calculation(rng: Random) -> PracticeProblem:
    """Return a question for an expression in symbols or words, or for a command."""
    kind = rng.random()
    if kind < 0.15:
        return _command(rng)
    if kind < 0.25:
        return _noun(rng)
    spelled = kind < 0.45
    node = expression(rng, spelled=spelled)
    phrase = in_speech(node, rng) if spelled else in_symbols(node, rng)
    return _calculated(node, dress(ask_for(phrase, rng), rng))


def _calculated(node: Node, text: str) -> PracticeProblem:
    match node:
        case Operation(
            "+" | "-" as sign,
            Operation("*", Number(), Number()) as first,
            Operation("*", Number(), Number()) as second,
        ):
            return PracticeProblem(
                "calculation",
                text,
                as_answer(value_of(node)),
                (
                    PlanBlock("First the product p.", f"p = {python(first)}".replace("(", "").replace(")",
                    ""), name="p"),
                    PlanBlock("Then the product q.", f"q = {python(second)}".replace("(", "").replace(")",
                    ""), name="q"),
                    PlanBlock(
                        f"The value to read is p {'plus' if sign == '+' else 'minus'} q.",
                        f"print(p {sign} q)",
                        run=True,
                    ),
                ),
                CLOSING,
            )  # fmt: skip
    imported = "import math\n" if has_factorial(node) else ""
    return one_block_problem(
        "calculation", text, as_answer(value_of(node)), f"{imported}print({python(node)})"
    )


def _pair(rng: Random) -> tuple[Number, Number]:
    return number(rng, spelled=True), number(rng, spelled=True)


def _command(rng: Random) -> PracticeProblem:
    """Return a question such as ``add 3 to 4``."""
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


def _noun(rng: Random) -> PracticeProblem:
    """Return a question such as ``the sum of 3 and 4`` or ``half of 10``."""
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


def scaled(rng: Random) -> PracticeProblem:
    """Return a question for a half, a multiple or a percentage."""
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
    return one_block_problem("scaled", dress(asked, rng), _evaluated(code), f"print({code})")


def _evaluated(code: str) -> int | str:
    """Return the value of ``a op b [op c]``, evaluated from left to right."""
    first, *rest = code.split(" ")
    value: float = _parsed(first)
    for sign, operand in zip(rest[::2], rest[1::2], strict=True):
        value = value * _parsed(operand) if sign == "*" else value / _parsed(operand)
    return as_answer(value)


def _parsed(text: str) -> float:
    return float(text) if "." in text else int(text)


def power(rng: Random) -> PracticeProblem:
    """Return a question for a square, cube or power."""
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
        phrase = rng.choice(forms).format(a=shown)
    else:
        base, exponent = size(rng, 4), rng.randint(2, 12)
        if rng.random() < 0.3:
            base, exponent = rng.randint(2, 12), rng.randint(10, 99)
        ordinal = "th" if 10 < exponent % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(exponent % 10, "th")
        phrase = rng.choice(
            ("{a} to the power of {n}", "{a} to the power {n}", "{a} to the {n}{o}",
            "{a} to the {n}{o} power", "{a}^{n}",
             "{a} ** {n}", "{a}**{n}", "{a} ^ {n}", "the {n}{o} power of {a}",
             "{a} raised to the {n}{o} power",
             "raise {a} to the power {n}", "raise {a} to the power of {n}", "raise {a} to the {n}{o} power",
             "{a} raised to {n}",
             "{a} to the {n}")
        ).format(a=written(base, rng, spelled=True), n=exponent, o=ordinal)  # fmt: skip
    verb = phrase.startswith(("square ", "cube ", "raise "))
    text = order(phrase, rng) if verb else ask_for(phrase, rng)
    return one_block_problem("power", dress(text, rng), base**exponent, f"print({base} ** {exponent})")


def factorial(rng: Random) -> PracticeProblem:
    n = rng.randint(0, 30)
    phrase = rng.choice(
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
    return one_block_problem(
        "factorial",
        dress(ask_for(phrase, rng), rng),
        math.factorial(n),
        f"import math\nprint(math.factorial({n}))",
    )


def factorial_quotient(rng: Random) -> PracticeProblem:
    """Return a question such as ``17!/15!``, alone or with one more step."""
    a = rng.randint(3, 40)
    b = rng.randint(1, a)
    gap = rng.choice(("", "", " "))
    phrase = rng.choice(
        (f"{a}!{gap}{rng.choice('//÷')}{gap}{b}!", f"{a}! divided by {b}!",
        f"{a} factorial divided by {b} factorial",
         f"{a}! over {b}!", f"{a} factorial over {b} factorial")
    )  # fmt: skip
    code = f"import math\nprint(math.factorial({a}) // math.factorial({b}))"
    value = math.prod(range(b + 1, a + 1))
    return one_block_problem("factorial_quotient", dress(ask_for(phrase, rng), rng), value, code)


def square_root(rng: Random) -> PracticeProblem:
    root = size(rng, 5)
    n = root * root if rng.random() < 0.6 else size(rng, 7)
    shown = written(n, rng)
    phrase = rng.choice(
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
    return one_block_problem(
        "square_root",
        dress(ask_for(phrase, rng), rng),
        str(math.sqrt(n)),
        f"import math\nprint(math.sqrt({n}))",
    )
