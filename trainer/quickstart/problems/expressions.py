"""Random arithmetic expressions: in symbols, in words, as Python code, and their value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Final

from trainer.quickstart.phrasing import written

Value = int | float

_PRECEDENCE: Final = {"+": 1, "-": 1, "*": 2, "/": 2, "//": 2, "%": 2, "**": 3}
_PYTHON: Final = {"+": " + ", "-": " - ", "*": " * ", "/": " / ", "//": " // ", "%": " % ", "**": " ** "}


@dataclass(frozen=True, slots=True)
class Number:
    value: Value
    text: str
    """The number as written in the question, such as ``1,234``."""


@dataclass(frozen=True, slots=True)
class Factorial:
    of: Number


@dataclass(frozen=True, slots=True)
class Operation:
    sign: str
    left: Node
    right: Node
    in_parentheses: bool = False


Node = Number | Factorial | Operation


def value_of(node: Node) -> Value:
    """Return the value of ``node``.

    Raises:
        ArithmeticError: a division by zero, or too large a result.
    """
    match node:
        case Number(value):
            return value
        case Factorial(Number(value)):
            return math.factorial(int(value))
        case Operation(sign, left, right):
            a, b = value_of(left), value_of(right)
            if sign == "+":
                return a + b
            if sign == "-":
                return a - b
            if sign == "*":
                return a * b
            if sign == "**":
                if not 0 <= b <= 400 or abs(a) > 10**12:
                    raise OverflowError("the power is too large")
                return a**b
            return a / b if sign == "/" else a // b if sign == "//" else a % b


def render(node: Node, signs: dict[str, str], factorial: str) -> str:
    """Return ``node`` as text.

    ``signs`` are written between operands; ``factorial`` is a format string with ``{}`` for the operand.
    Numbers are written in plain digits if ``signs`` are Python's.
    """
    if isinstance(node, Number):
        return str(node.value) if signs is _PYTHON else node.text
    if isinstance(node, Factorial):
        return factorial.format(render(node.of, signs, factorial))
    level = _PRECEDENCE[node.sign]
    sides = []
    for side, is_right in ((node.left, False), (node.right, True)):
        text = render(side, signs, factorial)
        if isinstance(side, Operation) and not side.in_parentheses:
            inner = _PRECEDENCE[side.sign]
            if inner < level or (inner == level and (is_right or node.sign == "**")):
                text = f"({text})"
        sides.append(text)
    text = signs[node.sign].join(sides)
    return f"({text})" if node.in_parentheses else text


def python(node: Node) -> str:
    """Return ``node`` as Python code. A factorial needs ``math``."""
    return render(node, _PYTHON, "math.factorial({})")


def has_factorial(node: Node) -> bool:
    if isinstance(node, Operation):
        return has_factorial(node.left) or has_factorial(node.right)
    return isinstance(node, Factorial)


def has_parentheses(node: Node) -> bool:
    """Return True if the text of ``node`` has parentheses."""
    return "(" in render(node, _PYTHON, "{}")


def size(rng: Random, largest: int = 12) -> int:
    """Return a positive whole number of 1 to ``largest`` digits, mostly a small one."""
    digits = rng.choice((1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 4, 5, 6, 7, 8, 10, 12))
    digits = min(digits, largest)
    value = rng.randrange(10 ** (digits - 1), 10**digits)
    if digits > 1 and rng.random() < 0.12:  # round numbers are common in real questions
        value -= value % 10 ** rng.randint(1, digits - 1)
    return value


def number(rng: Random, *, spelled: bool = False, largest: int = 12) -> Number:
    if rng.random() < 0.05:
        value = round(rng.randrange(1, 10_000) / rng.choice((10, 100)), 2)
        if value != int(value):
            return Number(value, str(value))
    if rng.random() < 0.02:
        return Number(0, "0")
    whole = size(rng, largest)
    return Number(whole, written(whole, rng, spelled=spelled))


def expression(rng: Random, *, spelled: bool = False) -> Node:
    """Return a random expression of 2 to 6 operands with a printable value.

    Args:
        rng: source of randomness.
        spelled: for an expression in words: no parentheses, no factorials, small numbers in words.
    """
    while True:
        operands = rng.choice((2, 2, 2, 2, 2, 2, 3, 3, 3, 4, 4, 5, 6))
        node = _tree(rng, operands, spelled)
        if spelled and has_parentheses(node):
            continue
        try:
            value = value_of(node)
        except ArithmeticError:
            continue
        if isinstance(value, float):
            if value == 0 or 1e-3 < abs(value) < 1e12:
                return node
        elif abs(value) < 10**40:
            return node


def _tree(rng: Random, operands: int, spelled: bool, depth: int = 0) -> Node:
    if operands == 1:
        return _operand(rng, spelled)
    left = rng.randint(1, operands - 1)
    sign = rng.choice("++++----******///")
    if rng.random() < 0.02:
        sign = rng.choice(("//", "%"))
    braces = depth > 0 and not spelled and rng.random() < 0.3
    first, second = (_tree(rng, n, spelled, depth + 1) for n in (left, operands - left))
    if sign == "/" and isinstance(first, Factorial) and isinstance(second, Factorial):
        # Exact: the quotient of a larger by a smaller factorial is whole.
        first, second = sorted((first, second), key=lambda f: -f.of.value)
        sign = "//"
    elif sign == "/" and isinstance(first, Number) and isinstance(second, Number) and rng.random() < 0.5:
        a, b = first.value, second.value
        if isinstance(a, int) and isinstance(b, int):  # makes the quotient whole
            first = Number(a * max(b, 1), written(a * max(b, 1), rng))
    return Operation(sign, first, second, in_parentheses=braces)


def _operand(rng: Random, spelled: bool) -> Node:
    kind = rng.random()
    if kind < 0.06 and not spelled:
        n = rng.randint(2, 25)
        return Factorial(Number(n, str(n)))
    if kind < 0.12:
        base, exponent = rng.randint(2, 30), rng.randint(2, 9)
        return Operation("**", Number(base, str(base)), Number(exponent, str(exponent)))
    return number(rng, spelled=spelled)


_SYMBOLS: Final = {
    "+": ("+", "+", "+", "+"),
    "-": ("-", "-", "-", "-", "−", "–"),
    "*": ("*", "*", "*", "*", "×", "x", "·", "X"),
    "/": ("/", "/", "/", "÷"),
    "//": ("//",),
    "%": ("%", "%", " mod "),
    "**": ("**", "^", "^"),
}
_SPOKEN: Final = {
    "+": ("plus", "plus", "plus", "and", "added to"),
    "-": ("minus", "minus", "minus", "take away", "less"),
    "*": ("times", "times", "times", "multiplied by", "multiplied with"),
    "/": ("divided by", "divided by", "over", "split by"),
    "//": ("divided (rounded down) by",),
    "%": ("modulo", "mod"),
    "**": ("to the power of", "to the power", "raised to", "to the"),
}


def in_symbols(node: Node, rng: Random) -> str:
    """Return ``node`` in symbols, as typed by a person. Quotients of factorials have a plain slash."""
    gap = rng.choice(("", "", " ", " ", " ", "  ") if rng.random() < 0.97 else ("\t", " "))
    signs = {}
    for name, symbols in _SYMBOLS.items():
        symbol = rng.choice(symbols)
        if name == "//" and has_factorial(node):
            symbol = rng.choice(_SYMBOLS["/"])
        own = "" if name == "**" and rng.random() < 0.6 else gap
        signs[name] = symbol if symbol.startswith(" ") else f"{own}{symbol}{own}"
    if rng.random() < 0.05:  # one-sided gaps
        signs["+"], signs["*"] = "+ ", " *"
    return render(node, signs, "{}!")


def in_speech(node: Node, rng: Random) -> str:
    """Return ``node`` in words."""
    signs = {name: f" {rng.choice(ways)} " for name, ways in _SPOKEN.items()}
    return render(node, signs, "{} factorial")
