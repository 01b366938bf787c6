"""Comparison of LaTeX expressions by value, parsed with math-verify.

Two expressions are equal if their exact values are equal or agree to hundreds of digits. Expressions with
variables must agree at several points. Rounded decimals are compared with their own precision.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from math_verify import verify
from mpmath import mp

from trainer.rewards.values import (
    TooLargeError,
    UndecidedError,
    UndefinedError,
    UnsupportedError,
    Value,
    evaluate,
    number,
)

_PRECISIONS: Final = (40, 250)
"""Working precisions in digits: the first separates most values, the second confirms equality."""
_MIN_DIGITS: Final = 6
"""Minimum significant digits for a rounded decimal to match an exact value."""
_NOISE: Final = Fraction(1, 10**12)
"""Relative error of floating-point arithmetic, as in 0.30000000000000004."""
_DECIMAL: Final = re.compile(r"[+-]?\s*(\d*)\.(\d+)")


class UnreadableError(ValueError):
    """The parser does not accept the text."""


class _Reader(_Latex2Sympy):  # type: ignore[misc]  # untyped
    """math-verify's parser with exact decimals. Does not read products as mixed numbers."""

    def parse_number(self, text: str) -> Any:
        return sympy.Rational(text.replace(",", ""))

    def convert_postfix_list(self, arr: Any, i: int = 0) -> Any:
        first = self.convert_postfix(arr[i])
        if isinstance(first, sympy.Integer) and i + 1 < len(arr):
            return self.mul_flat(first, self.convert_postfix_list(arr, i + 1))
        return super().convert_postfix_list(arr, i)

    def convert_binom(self, binom: Any) -> Any:
        return sympy.binomial(self.convert_expr(binom.upper), self.convert_expr(binom.lower), evaluate=False)

    def handle_gcd_lcm(self, f: str, args: Any) -> Any:
        if all(isinstance(arg, sympy.Integer) for arg in args):
            return super().handle_gcd_lcm(f, args)
        return sympy.Function(f)(*sorted(args, key=str))


@lru_cache(maxsize=256)
def read(latex: str) -> Any:
    """Parse normalised LaTeX of one expression, without relations and lists, into a SymPy object.

    Raises:
        UnreadableError: the parser rejects it.
    """
    text = _prepare(latex)
    reader = _Reader(convert_degrees=True, config=ConversionConfig(lowercase_symbols=False))
    try:
        tree = reader.parse(text)
    except Exception as error:  # the parser raises exceptions of many classes
        raise UnreadableError(latex) from error
    if not isinstance(tree, (sympy.Basic, sympy.MatrixBase)):
        raise UnreadableError(latex)
    return tree


_STEPS = (sympy.floor, sympy.ceiling)


def _prepare(text: str) -> str:
    """Rewrite notation that the parser's grammar does not support."""
    if re.search(
        r"\d\s+\d|(?<![_{\d])\d+\}?\s*_|\d\s*'|\d\s*\\text|\\quad|\\text\{[^{}]*[^A-Za-z{}][^{}]*\}", text
    ):
        raise UnreadableError(text)
    if "/" in text:
        # 1/2x means half of x; the parser would divide by 2x.
        text = re.sub(r"(?<![\w}.^_])(\d+)\s*/\s*(\d+)(?![\d.!^])\s*(?=[A-Za-z\\(])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(!+)\s*\^\s*(\{[^{}]*\}|\w)", r"\1^\2", text)
    text = re.sub(r"([A-Za-z0-9])(!)\^", r"(\1!)^", text)
    text = re.sub(r"(\((?:[^()]|\([^()]*\))*\))(!)\^", r"{\1!}^", text)
    text = re.sub(r"([A-Za-z])('+)", _prime, text)
    text = re.sub(r"_\{?\\(max|min)\s*\}?", r"_{\1}", text)
    text = re.sub(r"_\{([^{}]*)\}", _subscript, text)
    text = text.replace(r"\|", "|")
    text = re.sub(
        r"\\gamma(?![A-Za-z])|\\Gamma(?!\s*\(|[A-Za-z])", lambda m: rf"\text{{{m[0][1:]}letter}}", text
    )
    text = _plain_letter("I", text)
    if r"\int" not in text and not re.search(r"\\frac\s*\{\s*d\s*\}", text):
        text = _plain_letter("d", text)
    text = re.sub(r"\)\s*(?=\d)", r")\\cdot ", text)
    return re.sub(r"\^\{\*\}", "", text)


def _plain_letter(letter: str, text: str) -> str:
    """Write letters with a special meaning in the parser (``I``, ``dx``) as symbols."""
    if letter not in text:
        return text
    pieces = re.split(r"(\\text\{[^{}]*\}|\\[A-Za-z]+|_\{[^{}]*\}|_\w)", text)
    pieces[::2] = [piece.replace(letter, rf"\text{{{letter}}}") for piece in pieces[::2]]
    return "".join(pieces)


def _subscript(match: re.Match[str]) -> str:
    """Keep a subscript that is a name as one word."""
    if re.search(r"=|\\to(?![a-z])", match[1]):
        return match[0]
    return "_{" + re.sub(r"\\text|[\\{}\s]", "", match[1]) + "}"


def _prime(match: re.Match[str]) -> str:
    return f"{match[1]}_{{{'prime' * len(match[2])}}}"


def same_expression(gold: str, answer: str) -> bool:
    """Return True if two normalised LaTeX expressions have the same value.

    Raises:
        UnreadableError: the parser rejects one of them.
        TooLargeError: a value exceeds the limits.
    """
    gold_tree, answer_tree = read(gold), read(answer)
    if gold_tree == answer_tree:
        return True
    if isinstance(gold_tree, sympy.MatrixBase) or isinstance(answer_tree, sympy.MatrixBase):
        return _verified(gold_tree, answer_tree)
    try:
        if same_value(gold_tree, answer_tree):
            return True
    except UnsupportedError:
        return _verified(gold_tree, answer_tree)
    if variables(gold_tree) or variables(answer_tree):
        return False
    return _same_rounded(gold, gold_tree, answer, answer_tree)


def _verified(gold: Any, answer: Any) -> bool:
    """Return math-verify's result for expressions without a value at a point, such as matrices."""
    return bool(verify([gold], [answer], float_rounding=12, numeric_precision=30, timeout_seconds=None))


def variables(tree: Any) -> list[str]:
    """Return the names of the free variables in ``tree``, without the imaginary unit ``i``."""
    names = {symbol.name for symbol in getattr(tree, "free_symbols", ())} - {"i"}
    names |= {str(call) for call in tree.atoms(sympy.core.function.AppliedUndef)}
    return sorted(names)


def same_value(gold: Any, answer: Any) -> bool:
    """Return True if two trees have the same value at all points at which both have one.

    Raises:
        UnsupportedError: their values cannot be computed.
        TooLargeError: a value exceeds the limits.
    """
    names = sorted({*variables(gold), *variables(answer)})
    if not names:
        try:
            return _equal_at(gold, answer, {})
        except UndefinedError:
            return False
        except TooLargeError:
            if _same_shape(gold, answer):
                return True
            raise
    complex_wanted = _mentions_i(gold) or _mentions_i(answer)
    far = _far_points(names) if gold.has(*_STEPS) or answer.has(*_STEPS) else ()
    for points, needed in (((*_points(names), *far), 2), (_integer_points(names), 3)):
        compared = 0
        for point in points:
            equal = _equal_where_real(gold, answer, point, complex_wanted)
            if equal is False:
                return False
            compared += equal is not None
        if compared >= needed:
            return True
    raise UnsupportedError("no point at which both have a value")


def _points(names: list[str]) -> Iterator[Mapping[str, Fraction]]:
    values = (
        Fraction(17, 11),
        Fraction(5, 7),
        Fraction(31, 13),
        Fraction(9, 19),
        Fraction(23, 17),
        Fraction(37, 29),
    )
    for signs, shift in (((1,), 0), ((1,), 2), ((1, -1), 1), ((-1, 1), 3), ((-1,), 4)):
        yield {
            name: signs[at % len(signs)] * values[(at + shift) % 6] * (1 + Fraction(at // 6, 7))
            for at, name in enumerate(names)
        }


def _far_points(names: list[str]) -> Iterator[Mapping[str, Fraction]]:
    """Yield points of large size, at which rounded coefficients that agree near zero differ."""
    for scale in (Fraction(223, 3), Fraction(1013, 3)):
        yield {name: scale * (1 + Fraction(at, 7)) for at, name in enumerate(names)}


def _integer_points(names: list[str]) -> Iterator[Mapping[str, Fraction]]:
    for shift in range(1, 6):
        yield {name: Fraction(shift + 3 * (len(names) - 1 - at)) for at, name in enumerate(names)}


def _equal_where_real(
    gold: Any, answer: Any, point: Mapping[str, Fraction], complex_wanted: bool
) -> bool | None:
    """Compare at one point; None if a value is undefined or, unless ``complex_wanted``, not real."""
    try:
        with mp.workdps(_PRECISIONS[0]):
            pair = evaluate(gold, point), evaluate(answer, point)
            if not complex_wanted and any(isinstance(value, mp.mpc) for value in pair):
                return None
            if not _close(*pair, _PRECISIONS[0]):
                return False
        return _equal_at(gold, answer, point)
    except UndecidedError:
        return _equal_at(gold, answer, point)
    except (UndefinedError, TooLargeError):
        return None


def _mentions_i(tree: Any) -> bool:
    return tree.has(sympy.I) or any(symbol.name == "i" for symbol in tree.free_symbols)


def _equal_at(gold: Any, answer: Any, point: Mapping[str, Fraction]) -> bool:
    for digits in _PRECISIONS:
        with mp.workdps(digits):
            try:
                pair = evaluate(gold, point), evaluate(answer, point)
            except UndecidedError:
                if digits == _PRECISIONS[-1]:
                    return _same_shape(gold, answer)
                continue
            if all(isinstance(value, Fraction) for value in pair):
                return bool(pair[0] == pair[1])
            if not _close(*pair, digits):
                return False
    return True


def _close(a: Value, b: Value, digits: int) -> bool:
    a, b = number(a), number(b)
    if mp.isinf(a) or mp.isinf(b):
        return bool(a == b)
    return bool(abs(a - b) <= max(abs(a), abs(b)) * mp.mpf(10) ** (12 - digits))


def _same_shape(gold: Any, answer: Any) -> bool:
    """Compare values that are too large to compute: same operations on equal operands, in any order."""
    if gold == answer:
        return True
    if gold.func != answer.func or len(gold.args) != len(answer.args) or not gold.args:
        return False
    if not isinstance(gold, (sympy.Add, sympy.Mul)):
        return all(_same_part(a, b) for a, b in zip(gold.args, answer.args, strict=True))
    left = list(answer.args)
    for part in gold.args:
        found = next((other for other in left if _same_part(part, other)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _same_part(gold: Any, answer: Any) -> bool:
    try:
        return same_value(gold, answer)
    except (UnsupportedError, UndecidedError, TooLargeError):
        return bool(gold == answer)


def _same_rounded(gold: str, gold_tree: Any, answer: str, answer_tree: Any) -> bool:
    """Return True if one side is the other one rounded, or both differ only by floating-point errors."""
    gold_digits, answer_digits = _precision(gold), _precision(answer)
    if gold_digits is None and answer_digits is None:
        return False
    try:
        with mp.workdps(_PRECISIONS[0]):
            g, a = evaluate(gold_tree, {}), evaluate(answer_tree, {})
            if any(mp.isinf(v) for v in (g, a) if not isinstance(v, Fraction)):
                return False
            g, a = number(g), number(a)
            error = abs(g - a)
            if not g or not a:
                return False
            if max(gold_digits or (0, 0), answer_digits or (0, 0))[0] >= 15 and error <= abs(g) * number(
                _NOISE
            ):
                return True
            if gold_digits is not None and answer_digits is not None:
                return False
            digits, places = gold_digits or answer_digits or (0, 0)
            exact = gold_tree if gold_digits is None else answer_tree
            if digits < _MIN_DIGITS or _terminates(exact):
                return False
            return bool(error <= mp.mpf(10) ** -places * mp.mpf("0.5001") or error <= abs(g) * mp.mpf("1e-8"))
    except (UnsupportedError, UndefinedError, UndecidedError, TooLargeError):
        return False


def _precision(text: str) -> tuple[int, int] | None:
    """Return significant digits and decimal places of the most precise decimal in ``text``, or None."""
    found = [(len((whole + places).lstrip("0")), len(places)) for whole, places in _DECIMAL.findall(text)]
    return max(found) if found else None


def _terminates(tree: Any) -> bool:
    """Return True if a decimal with few digits is exact, so that other decimals do not match it."""
    value = evaluate(tree, {})
    if not isinstance(value, Fraction):
        return False
    denominator = value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1 and math.log10(value.denominator) < 12


def same_ratio(gold: Any, answer: Any, *, positive: bool) -> bool:
    """Return True if two trees differ only by a constant factor, so that their zeros are the same.

    Raises:
        UnsupportedError: their values cannot be computed.
        TooLargeError: a value exceeds the limits.
    """
    names = variables(gold)
    if names != variables(answer):
        return False
    if not names:
        return False
    for trees in ((gold, answer), (_numerator(gold), _numerator(answer))):
        ratios = list(_ratios(trees[0], trees[1], names))
        if len(ratios) >= 3 and all(_close(ratio, ratios[0], _PRECISIONS[0]) for ratio in ratios):
            return not positive or bool(mp.re(ratios[0]) > 0)
        if positive:
            break
    return False


def _numerator(tree: Any) -> Any:
    return sympy.fraction(sympy.together(tree.doit()))[0]


def _ratios(gold: Any, answer: Any, names: list[str]) -> Iterator[Any]:
    with mp.workdps(_PRECISIONS[0]):
        for point in (*_points(names), *_integer_points(names)):
            try:
                g, a = number(evaluate(gold, point)), number(evaluate(answer, point))
            except (UndefinedError, UndecidedError):
                continue
            if a and g:
                yield g / a
            elif bool(a) != bool(g):
                yield mp.inf
