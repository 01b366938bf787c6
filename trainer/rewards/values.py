"""Values of SymPy trees: exact fractions if possible, else mpmath numbers at its working precision.

SymPy's ``evalf`` and ``simplify`` are not used: they rewrite the tree first, which takes minutes for hostile
input, and they round to zero. Limits keep short answers from causing huge computations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from fractions import Fraction
from typing import Any, Final

import sympy
from mpmath import mp
from sympy.core.function import AppliedUndef

MAX_BITS: Final = 8_000_000
"""Maximum bits of an exact integer; larger powers are rounded to hundreds of digits."""
MAX_BITS_AT_POINTS: Final = 20_000
"""Maximum bits for expressions with variables, which are evaluated at several points."""
MAX_FACTORIAL: Final = 20_000
"""Largest number whose factorial is computed exactly."""
MAX_EXPONENT_BITS: Final = 200
"""Maximum bits of an exponent; beyond, not even the number of digits of the value can be computed."""
MAX_TERMS: Final = 20_000
"""Maximum number of terms of a sum or product over an index."""
MAX_TERMS_AT_POINTS: Final = 3_000
"""Maximum number of terms if the terms have variables."""
MAX_TERMS_IN_TOTAL: Final = 40_000
"""Maximum number of terms of all sums and products of one value."""
MAX_DIVISION: Final = 1 << 39
"""Maximum product of the bits of divisor and quotient; Python divides integers in quadratic time."""
MAX_BITS_OF_TERMS: Final = 10_000_000
"""Maximum number of bits of all terms of a sum or product together."""
MAX_BITS_OF_PRODUCT: Final = 4_000_000
"""Maximum bits of an exact product; larger ones are rounded to hundreds of digits."""
MAX_BITS_OF_SUM: Final = 200_000
"""Maximum bits of the denominators of an exact sum or product over an index."""


class TooLargeError(ValueError):
    """A value exceeds the limits and is not computed."""


def check_power(base: Fraction | int, exponent: int, max_bits: int = MAX_BITS) -> bool:
    """Return True if ``base ** exponent`` has at most about ``max_bits`` bits and can be computed exactly.

    Raises:
        TooLargeError: the base exceeds ``MAX_BITS``.
    """
    bits = max(abs(base.numerator), base.denominator).bit_length()
    if bits > MAX_BITS:
        raise TooLargeError(f"a number of {bits} bits")
    return max(bits - 1, 1) * abs(exponent) <= max_bits


def check_exponent(value: Any) -> None:
    """Raise TooLargeError if no digits of a power or factorial with this exponent can be computed."""
    size = value.numerator.bit_length() if isinstance(value, Fraction) else mp.mag(value)
    if size not in (mp.inf, mp.ninf) and size > MAX_EXPONENT_BITS:
        raise TooLargeError(f"an exponent of {size} bits")


def check_factorial(value: Fraction) -> bool:
    """Return True if the factorial of ``value`` is computed exactly."""
    return value <= MAX_FACTORIAL


def check_range(length: Fraction, limit: int = MAX_TERMS) -> None:
    """Raise TooLargeError for a sum of more than ``limit`` terms."""
    if length > limit:
        raise TooLargeError(f"a sum of {length} terms")


Value = Any
"""An exact Fraction, or an mpf or mpc of mpmath."""

_FUNCTION_NAMES: Final = frozenset("fghpquFGHPQTVSAN")
"""Letters that are read as functions before a bracket; other letters are read as factors."""


class UndefinedError(ValueError):
    """The expression has no value at this point, for example a division by zero."""


class UndecidedError(ValueError):
    """The working precision is too low to distinguish a sum from its largest term."""


class UnsupportedError(ValueError):
    """The expression has parts without a value, such as unknown functions, divergent sums or sets."""


_terms_left: ContextVar[int] = ContextVar("terms_left")
VALUE_ERRORS: Final = (UnsupportedError, UndefinedError, UndecidedError, TooLargeError)
"""The errors of :func:`evaluate`."""


def evaluate(tree: Any, point: Mapping[str, Fraction]) -> Value:
    """Return the value of ``tree`` with its variables at ``point``.

    Raises:
        UndefinedError: the expression has no value at this point.
        UndecidedError: the precision is too low.
        UnsupportedError: a part has no value.
        TooLargeError: a part exceeds the limits.
    """
    _terms_left.set(MAX_TERMS_IN_TOTAL)
    try:
        return _value(tree, dict(point))
    except (ZeroDivisionError, OverflowError, ArithmeticError) as error:
        raise UndefinedError(str(error)) from error
    except (TypeError, AttributeError, NotImplementedError, RecursionError) as error:
        raise UnsupportedError(str(error)) from error


def _value(tree: Any, point: dict[str, Fraction]) -> Value:
    if isinstance(tree, sympy.Rational):
        return Fraction(int(tree.p), int(tree.q))
    if isinstance(tree, sympy.Symbol):
        return _symbol(tree.name, point)
    if isinstance(tree, sympy.Add):
        return _sum([_value(arg, point) for arg in tree.args])
    if isinstance(tree, sympy.Mul):
        return _product([_value(arg, point) for arg in tree.args])
    if isinstance(tree, sympy.Pow):
        return _power(tree.base, tree.exp, point)
    if isinstance(tree, sympy.UnevaluatedExpr):
        return _value(tree.args[0], point)
    constant = _CONSTANTS.get(tree)
    if constant is not None:
        return constant()
    if isinstance(tree, sympy.Float):
        return Fraction(str(tree))
    if isinstance(tree, (sympy.Sum, sympy.Product)):
        return _series(tree, point)
    if isinstance(tree, (sympy.Integral, sympy.Derivative, sympy.Limit)):
        done = tree.doit()
        if done.has(sympy.Integral, sympy.Derivative, sympy.Limit):
            raise UnsupportedError(str(type(tree)))
        return _value(done, point)
    if isinstance(tree, AppliedUndef):
        return _call(tree, point)
    if tree in (sympy.nan, sympy.zoo):
        raise UndefinedError("not a number")
    name = type(tree).__name__
    if name in _PERIODIC:
        return _periodic(name, tree.args[0], point)
    function = _FUNCTIONS.get(name)
    if function is None:
        raise UnsupportedError(name)
    return _tidy(function(*(_value(arg, point) for arg in tree.args)))


def _symbol(name: str, point: dict[str, Fraction]) -> Value:
    if name in point:
        return point[name]
    if name == "i":
        return mp.mpc(0, 1)
    raise UnsupportedError(name)


def number(value: Value) -> Any:
    """Return ``value`` as an mpmath number at the working precision."""
    if not isinstance(value, Fraction):
        return value
    return _from_integer(value.numerator) / _from_integer(value.denominator)


def _from_integer(value: int) -> Any:
    # mpmath removes trailing zero bits in quadratic time, so that large integers are cut first.
    extra = max(value.bit_length() - mp.prec - 64, 0)
    return mp.ldexp(mp.mpf(value >> extra), extra)


def _tidy(value: Value) -> Value:
    """Convert a complex value to a real one if its imaginary part is a rounding error."""
    if isinstance(value, mp.mpc):
        size = abs(value)
        if abs(value.imag) <= size * mp.mpf(10) ** (8 - mp.dps):
            return value.real
    elif isinstance(value, int):
        return Fraction(value)
    if mp.isnan(value) if not isinstance(value, Fraction) else False:
        raise UndefinedError("not a number")
    return value


def _sum(terms: list[Value]) -> Value:
    if all(isinstance(term, Fraction) for term in terms):
        return sum(terms, Fraction(0))
    numbers = [number(term) for term in terms]
    total = mp.fsum(numbers)
    sizes = [abs(term) for term in numbers if term]
    if not sizes or mp.isinf(total):
        return _tidy(total)
    largest = max(sizes)
    smallest_kept = largest * mp.mpf(10) ** (8 - mp.dps)
    if min(sizes) < smallest_kept:
        raise UndecidedError("a term is lost in the sum")
    return mp.mpf(0) if abs(total) < smallest_kept else _tidy(total)


def _product(factors: list[Value]) -> Value:
    exact = Fraction(1)
    rest: Any = None
    bits = 0
    for factor in factors:
        if isinstance(factor, Fraction):
            check_power(abs(factor) or 1, 1)
            bits += _bits(factor)
            if bits <= MAX_BITS_OF_PRODUCT or not factor:
                exact *= factor
                continue
        rest = number(factor) if rest is None else rest * number(factor)
    if rest is None or exact == 0:
        return exact
    return _tidy(rest * number(exact))


def _power(base_tree: Any, exponent_tree: Any, point: dict[str, Fraction]) -> Value:
    base, exponent = _value(base_tree, point), _value(exponent_tree, point)
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            return _integer_power(base, exponent.numerator, MAX_BITS_AT_POINTS if point else MAX_BITS)
        root = _exact_root(abs(base), exponent)
        # The root of a negative number is real only if an odd root is written, as in \sqrt[3]{-8}.
        if base < 0 and exponent.denominator % 2 and not exponent_tree.free_symbols:
            sign = -1 if exponent.numerator % 2 else 1
            return sign * (root if root is not None else mp.power(number(-base), number(exponent)))
        if base >= 0 and root is not None:
            return root
    if base == 0:
        if mp.re(number(exponent)) <= 0:
            raise UndefinedError("a power of 0")
        return Fraction(0)
    check_exponent(exponent)
    if isinstance(exponent, Fraction) and exponent.denominator == 1:
        return _tidy(mp.power(number(base), exponent.numerator))
    return _tidy(mp.power(number(base), number(exponent)))


def _integer_power(base: Fraction, exponent: int, max_bits: int) -> Value:
    if base == 0:
        if exponent <= 0:
            raise UndefinedError("a power of 0")
        return Fraction(0)
    if check_power(base, exponent, max_bits):
        return base**exponent
    check_exponent(Fraction(exponent))
    return mp.power(number(base), exponent)


def _exact_root(base: Fraction, exponent: Fraction) -> Fraction | None:
    """Return ``base ** exponent`` if it is rational, for roots up to the 64th, else None."""
    degree = exponent.denominator
    if degree > 64 or max(base.numerator, base.denominator).bit_length() > 100_000:
        return None
    parts = []
    for part in (base.numerator, base.denominator):
        root = int(sympy.integer_nthroot(part, degree)[0])
        if root**degree != part:
            return None
        parts.append(root)
    value = Fraction(*parts)
    if value == 0 and exponent < 0:
        raise UndefinedError("a power of 0")
    return value**exponent.numerator if check_power(value or 1, exponent.numerator) else None


def _series(tree: Any, point: dict[str, Fraction]) -> Value:
    index, first, last = tree.limits[-1]
    term_tree = tree.func(tree.function, *tree.limits[:-1]) if len(tree.limits) > 1 else tree.function
    if last in (sympy.oo, sympy.S.Infinity):
        done = tree.doit()
        if done.has(sympy.Sum, sympy.Product):
            raise UnsupportedError("an infinite series")
        return _value(done, point)
    low, high = _value(first, point), _value(last, point)
    if not all(isinstance(v, Fraction) and v.denominator == 1 for v in (low, high)):
        raise UndefinedError("a bound that is not an integer")
    check_range(high - low, MAX_TERMS_AT_POINTS if point else MAX_TERMS)
    _terms_left.set(_terms_left.get() - max(int(high - low), 0))
    if _terms_left.get() < 0:
        raise TooLargeError("too many terms in total")
    terms: list[Value] = []
    bits = bits_below = 0
    for k in range(int(low), int(high) + 1):
        term = _value(term_tree, {**point, index.name: Fraction(k)})
        terms.append(term)
        if isinstance(term, Fraction):
            bits += _bits(term)
            bits_below += term.denominator.bit_length() - 1
        if bits > MAX_BITS_OF_TERMS:
            raise TooLargeError(f"terms of {bits} bits")
    is_sum = isinstance(tree, sympy.Sum)
    if (bits_below if is_sum else bits) > MAX_BITS_OF_SUM:
        # Fractions with huge denominators take minutes.
        terms = [number(term) for term in terms]
    return _sum(terms) if is_sum else _product(terms)


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length() - 1


def _call(tree: Any, point: dict[str, Fraction]) -> Value:
    name = tree.func.__name__
    if len(name) == 1 and name not in _FUNCTION_NAMES and len(tree.args) == 1:
        return _product([_symbol(name, point), _value(tree.args[0], point)])
    if str(tree) in point:
        return point[str(tree)]
    raise UnsupportedError(name)


_LARGE_GAMMA: Final = 1000
"""Numbers from which the logarithm of the gamma function is computed, which takes less time."""


def _factorial(value: Value) -> Value:
    if isinstance(value, Fraction) and value.denominator == 1:
        if value < 0:
            raise UndefinedError("a factorial of a negative number")
        if check_factorial(value):
            return Fraction(math.factorial(value.numerator))
    check_exponent(value)
    size = number(value)
    if isinstance(size, mp.mpc) or abs(size) < _LARGE_GAMMA:
        return mp.gamma(size + 1)
    if size < 0:
        raise TooLargeError("the gamma function of a large negative number")
    with mp.workprec(mp.prec + 2 * mp.mag(size)):
        result = mp.exp(mp.loggamma(size + 1))
    return +result


def _double_factorial(value: Value) -> Value:
    """Return the product of every second number up to ``value``, an integer."""
    if not isinstance(value, Fraction) or value.denominator != 1 or value < -1:
        raise UndefinedError("a double factorial of a number that is not a natural number")
    if check_factorial(value):
        return Fraction(math.prod(range(value.numerator, 0, -2)))
    check_exponent(value)
    return mp.fac2(number(value))


def _binomial(top: Value, bottom: Value) -> Value:
    if all(isinstance(v, Fraction) and v.denominator == 1 for v in (top, bottom)) and top >= 0:
        if not 0 <= bottom <= top:
            return Fraction(0)
        if check_factorial(min(bottom, top - bottom)) and top < 10**9:
            return Fraction(math.comb(top.numerator, bottom.numerator))
    check_exponent(top)
    check_exponent(bottom)
    return mp.binomial(number(top), number(bottom))


def _logarithm(value: Value, base: Value | None = None) -> Value:
    if value == 0:
        raise UndefinedError("a logarithm of 0")
    if base is None:
        return Fraction(0) if value == 1 else mp.log(number(value))
    return mp.log(number(value)) / mp.log(number(base))


def _round(way: Callable[[Any], Any]) -> Callable[[Value], Value]:
    def rounded(value: Value) -> Value:
        if isinstance(value, Fraction):
            _check_division(value.numerator, value.denominator)
            return Fraction(math.floor(value) if way is mp.floor else math.ceil(value))
        check_exponent(value)
        nearest = mp.nint(value)
        if abs(value - nearest) < mp.mpf(10) ** (10 - mp.dps) * max(1, abs(value)):
            value = nearest
        return Fraction(int(way(value)))

    return rounded


def _absolute(value: Value) -> Value:
    return abs(value)


def _modulo(value: Value, modulus: Value) -> Value:
    if isinstance(value, Fraction) and isinstance(modulus, Fraction):
        _check_division(value.numerator * modulus.denominator, modulus.numerator * value.denominator)
    return value % modulus


def _check_division(value: int, divisor: int) -> None:
    bits = divisor.bit_length()
    if bits * max(value.bit_length() - bits, 0) > MAX_DIVISION:
        raise TooLargeError("a division of large integers")


def _common(way: Callable[..., int]) -> Callable[..., Value]:
    def common(*values: Value) -> Value:
        if not all(isinstance(v, Fraction) and v.denominator == 1 for v in values):
            raise UndefinedError("not integers")
        return Fraction(way(*(int(v) for v in values)))

    return common


def _plain(function: Callable[..., Any]) -> Callable[..., Value]:
    return lambda *values: function(*(number(v) for v in values))


def _periodic(name: str, angle: Any, point: dict[str, Fraction]) -> Value:
    """Evaluate a trigonometric or hyperbolic function, with as many digits of the angle as required.

    mpmath subtracts multiples of a constant first, which takes time linear in the size of the angle.
    """
    plain = number(_value(angle, point))
    size = mp.mag(plain)
    if size == mp.inf:
        return _tidy(getattr(mp, name)(plain))
    if size > MAX_EXPONENT_BITS:
        raise TooLargeError(f"an angle of {size} bits")
    with mp.workprec(mp.prec + (int(size) if size > 0 else 0)):
        value = getattr(mp, name)(number(_value(angle, point)))
    return _tidy(+value)


def _exponential(value: Value) -> Value:
    check_exponent(value)
    return Fraction(1) if value == 0 else mp.exp(number(value))


_CONSTANTS: Final[dict[Any, Callable[[], Value]]] = {
    sympy.pi: lambda: +mp.pi,
    sympy.E: lambda: +mp.e,
    sympy.I: lambda: mp.mpc(0, 1),
    sympy.EulerGamma: lambda: +mp.euler,
    sympy.GoldenRatio: lambda: +mp.phi,
    sympy.oo: lambda: mp.inf,
    -sympy.oo: lambda: -mp.inf,
}
_PERIODIC: Final = frozenset({"sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh"})
_FUNCTIONS: Final[dict[str, Callable[..., Value]]] = {
    "exp": _exponential,
    "log": _logarithm,
    "factorial": _factorial,
    "factorial2": _double_factorial,
    "binomial": _binomial,
    "Abs": _absolute,
    "floor": _round(mp.floor),
    "ceiling": _round(mp.ceil),
    "Mod": _modulo,
    "Max": lambda *values: max(values, key=number),
    "Min": lambda *values: min(values, key=number),
    "gcd": _common(math.gcd),
    "lcm": _common(math.lcm),
    "gamma": lambda value: _factorial(value - 1),
    "re": lambda value: mp.re(number(value)),
    "im": lambda value: mp.im(number(value)),
    "conjugate": lambda value: mp.conj(number(value)),
    **{name: _plain(getattr(mp, name)) for name in (
        "asin", "acos", "atan", "acot", "asec", "acsc",
        "asinh", "acosh", "atanh", "sign", "zeta",
    )},
}  # fmt: skip
