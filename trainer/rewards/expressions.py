"""Comparison of LaTeX expressions by value, parsed with math-verify.

Two expressions are equal if their exact values are equal or agree to hundreds of digits. Expressions with
variables must agree at several points. Rounded decimals are compared with their own precision.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from math_verify import verify
from mpmath import mp

from trainer.rewards.grammar import for_parser
from trainer.rewards.values import (
    VALUE_ERRORS,
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
_TRUNCATED_DIGITS: Final = 9
"""Minimum significant digits for a decimal with an error in its last digit to match an exact value."""
_FLOAT_DIGITS: Final = range(15, 18)
"""Significant digits of floating-point numbers with rounding errors, such as 0.30000000000000004."""
_NOISE: Final = (Fraction(1, 10**12), Fraction(1, 10**6))
"""Relative and absolute error of floating-point arithmetic."""
_DECIMAL: Final = re.compile(
    r"(?:\\frac\{|\()?\s*[+-]?\s*(\d*)\.(\d+)\s*(?:\\(?:cdot|times)\s*10\s*\^\{([+-]?\s*\d+)\})?"
    r"(?:\}\{(100)\}|\)\\cdot\\frac\{(\d+)\}\{(\d+)\})?"
)
"""A decimal, perhaps in scientific notation, as a percentage or converted to another unit."""


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

    def convert_postfix(self, postfix: Any) -> Any:
        factorials = [op.BANG() is not None for op in postfix.postfix_op()]
        if sum(factorials) < 2:
            return super().convert_postfix(postfix)
        if len(factorials) > 2 or not all(factorials):
            raise UnreadableError("more than two exclamation marks")
        nested = postfix.exp() if hasattr(postfix, "exp") else postfix.exp_nofunc()
        return sympy.factorial2(self.convert_exp(nested), evaluate=False)

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
    text = for_parser(latex)
    if text is None:
        raise UnreadableError(latex)
    reader = _Reader(convert_degrees=True, config=ConversionConfig(lowercase_symbols=False))
    try:
        tree = reader.parse(text)
    except Exception as error:  # the parser raises exceptions of many classes
        raise UnreadableError(latex) from error
    if not isinstance(tree, (sympy.Basic, sympy.MatrixBase)):
        raise UnreadableError(latex)
    return tree


_PIECEWISE: Final = (sympy.floor, sympy.ceiling, sympy.Abs, sympy.Max, sympy.Min, sympy.Mod, sympy.sign)


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
    for point in _piece_points(names, gold, answer):
        with contextlib.suppress(TooLargeError):
            if _equal_where_real(gold, answer, point, complex_wanted) is False:
                return False
    too_large: TooLargeError | None = None
    for points, needed in ((_points(names), 2), (_integer_points(names), 3)):
        compared = 0
        for point in points:
            try:
                equal = _equal_where_real(gold, answer, point, complex_wanted)
            except TooLargeError as error:
                too_large = error
                continue
            if equal is False:
                return False
            compared += equal is not None
        if compared >= needed:
            return True
    if too_large:
        raise too_large
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


def _piece_points(names: list[str], *trees: Any) -> Iterator[Mapping[str, Fraction]]:
    r"""Yield points on all pieces of functions such as :math:`|x-100|`, which other points may not reach.

    Points lie on both sides of the constants of the trees, of their products and of their quotients. There
    are none for trees without such functions, which are equal if they are equal near one point. Points at
    which a root or logarithm inside a tree is not real are left out.
    """
    if not any(tree.has(*_PIECEWISE) or any(map(_is_root, tree.atoms(sympy.Pow))) for tree in trees):
        return
    constants = {Fraction(1), Fraction(10), Fraction(223, 3), *_constants(*trees)}
    pairs = {value for a in constants for b in constants for value in (a * b, a / b)}
    kinks = sorted(constants | pairs)
    kinks = kinks[:: len(kinks) // 24 + 1] + kinks[-1:]
    middles = [(low + high) / 2 for low, high in itertools.pairwise([Fraction(0), *kinks, 30 * kinks[-1]])]
    if any(tree.has(sympy.Sum, sympy.Product) for tree in trees):
        middles = middles[::6]  # each value takes longer
    values = [sign * (middle + middle / 97) for middle in middles for sign in (1, -1)]
    rng = random.Random(len(names))  # noqa: S311 - any fixed selection
    columns = [values, *(rng.sample(values, len(values)) for _ in names[1:])]
    for row in zip(*columns, strict=True):
        point = dict(zip(names, row, strict=True))
        if all(_has_real_parts(tree, point) for tree in trees):
            yield point


def _is_root(power: Any) -> bool:
    return not power.exp.is_integer and power.exp.is_number is True


def _constants(*trees: Any) -> set[Fraction]:
    """Return the absolute values of the first constants in ``trees``, rounded."""
    found: set[Fraction] = set()
    for node in itertools.islice(itertools.chain(*map(sympy.preorder_traversal, trees)), 200):
        if len(found) == 12:
            break
        if not isinstance(node, sympy.Expr) or node.free_symbols:
            continue
        with contextlib.suppress(*VALUE_ERRORS), mp.workdps(20):
            size = abs(number(evaluate(node, {})))
            if mp.mpf("1e-9") < size < mp.mpf("1e30"):
                found.add(Fraction(str(mp.nstr(size, 9))))
    return found


def _has_real_parts(tree: Any, point: Mapping[str, Fraction]) -> bool:
    """Return True if the roots and logarithms in ``tree`` are those of numbers that are not negative."""
    with mp.workdps(_PRECISIONS[0]):
        try:
            parts = [evaluate(power.base, point) for power in tree.atoms(sympy.Pow) if _is_root(power)]
            parts += [evaluate(log.args[0], point) for log in tree.atoms(sympy.log)]
        except VALUE_ERRORS:
            return False
    return all(not isinstance(part, mp.mpc) and part >= 0 for part in parts)


def _integer_points(names: list[str]) -> Iterator[Mapping[str, Fraction]]:
    for shift in (*range(1, 6), 12, 35, 77):
        yield {name: Fraction(shift + 3 * (len(names) - 1 - at)) for at, name in enumerate(names)}


def _equal_where_real(
    gold: Any, answer: Any, point: Mapping[str, Fraction], complex_wanted: bool
) -> bool | None:
    """Compare at one point; None if a value is undefined or, unless ``complex_wanted``, not real.

    Raises:
        TooLargeError: a value exceeds the limits.
    """
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
    except UndefinedError:
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
    decimals = decimal(gold), decimal(answer)
    rounded = decimals[0] or decimals[1]
    if rounded is None:
        return False
    try:
        with mp.workdps(_PRECISIONS[0]):
            values = evaluate(gold_tree, {}), evaluate(answer_tree, {})
            if any(not v or mp.isinf(v) for v in values if not isinstance(v, Fraction)) or not all(values):
                return False
            g, a = (number(value) for value in values)
            error = abs(g - a)
            whole = all(isinstance(value, Fraction) and value.denominator == 1 for value in values)
            if not whole and any(d is not None and d.digits in _FLOAT_DIGITS for d in decimals):
                relative, absolute = map(number, _NOISE)
                if error <= min(abs(g) * relative, absolute):
                    return True
            exact_text, exact = (gold, gold_tree) if decimals[0] is None else (answer, answer_tree)
            if rounded.digits < _MIN_DIGITS or "." in exact_text or _terminates(exact):
                return False
            steps = 1 if rounded.digits >= _TRUNCATED_DIGITS else mp.mpf("0.5001")
            return bool(error <= number(rounded.step) * steps)
    except VALUE_ERRORS:
        return False


@dataclass(frozen=True, slots=True)
class Decimal:
    """The precision of a decimal: significant digits, and the value of one unit in the last place."""

    digits: int
    step: Fraction


def decimal(text: str) -> Decimal | None:
    """Return the precision of a text that is a single decimal, or None."""
    match = _DECIMAL.fullmatch(text)
    if match is None:
        return None
    exponent = int((match[3] or "0").replace(" ", "")) - len(match[2])
    if abs(exponent) > _PRECISIONS[-1]:
        return None
    scale = Fraction(int(match[5] or 1), int(match[6] or match[4] or 1))
    return Decimal(len((match[1] + match[2]).lstrip("0")), Fraction(10) ** exponent * scale)


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
        near = (*_points(names), *_integer_points(names))
        for at, point in enumerate((*near, *_piece_points(names, gold, answer))):
            try:
                g, a = number(evaluate(gold, point)), number(evaluate(answer, point))
            except (UndefinedError, UndecidedError):
                continue
            except TooLargeError:
                if at < len(near):
                    raise
                continue
            if a and g:
                yield g / a
            elif bool(a) != bool(g):
                yield mp.inf
