from __future__ import annotations

from random import Random

from trainer.quickstart.problems.expressions import (
    Factorial,
    Number,
    Operation,
    expression,
    in_speech,
    in_symbols,
    python,
    value_of,
)


def n(value: int) -> Number:
    return Number(value, f"{value:,}")


def test_value_equals_python_output() -> None:
    for seed in range(500):
        node = expression(Random(seed), spelled=seed % 3 == 0)
        assert repr(eval(python(node), {"math": __import__("math")})) == repr(value_of(node))


def test_parentheses_preserve_structure() -> None:
    assert python(Operation("*", Operation("+", n(1), n(2)), n(3))) == "(1 + 2) * 3"
    assert python(Operation("-", n(1), Operation("-", n(2), n(3)))) == "1 - (2 - 3)"
    assert python(Operation("-", Operation("-", n(1), n(2)), n(3))) == "1 - 2 - 3"


def test_python_has_plain_numbers_and_text_has_separators() -> None:
    node = Operation("+", n(1234), n(5))
    assert python(node) == "1234 + 5"
    assert "1,234" in in_symbols(node, Random(0))
    assert in_speech(node, Random(0)).startswith("1,234 ")


def test_quotient_of_factorials_is_whole_in_python_and_slash_in_text() -> None:
    node = Operation("//", Factorial(n(17)), Factorial(n(15)))
    assert python(node) == "math.factorial(17) // math.factorial(15)"
    assert value_of(node) == 272
    assert "//" not in in_symbols(node, Random(0))
