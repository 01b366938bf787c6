"""Limits on the size of values: what an answer of a few characters may make this process compute."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Final

from mpmath import mp

MAX_BITS: Final = 8_000_000
"""Of an integer that is worked out exactly; larger powers are rounded to hundreds of digits."""
MAX_BITS_AT_POINTS: Final = 20_000
"""The same for expressions with variables, which are worked out at several points."""
MAX_FACTORIAL: Final = 20_000
"""The largest number whose factorial is worked out exactly."""
MAX_EXPONENT_BITS: Final = 200
"""Of an exponent: beyond, not even the number of digits of the value is known."""
MAX_TERMS: Final = 20_000
"""Of a sum or product over an index."""


class TooLargeError(ValueError):
    """A value is out of all proportion and is not worked out."""


def check_power(base: Fraction | int, exponent: int, max_bits: int = MAX_BITS) -> bool:
    """Whether ``base ** exponent`` has at most about ``max_bits``, so that it is worked out exactly.

    Raises:
        TooLargeError: the base itself is beyond ``MAX_BITS``.
    """
    bits = max(abs(base.numerator), base.denominator).bit_length()
    if bits > MAX_BITS:
        raise TooLargeError(f"a number of {bits} bits")
    return max(bits - 1, 1) * abs(exponent) <= max_bits


def check_exponent(value: Any) -> None:
    """Raise TooLargeError if a power or a factorial with this exponent has no digits that can be known."""
    size = value.numerator.bit_length() if isinstance(value, Fraction) else mp.mag(value)
    if size not in (mp.inf, mp.ninf) and size > MAX_EXPONENT_BITS:
        raise TooLargeError(f"an exponent of {size} bits")


def check_factorial(value: Fraction) -> bool:
    """Whether the factorial of ``value`` is worked out exactly."""
    return value <= MAX_FACTORIAL


def check_range(length: Fraction) -> None:
    """Raise TooLargeError for a sum of more than ``MAX_TERMS`` terms."""
    if length > MAX_TERMS:
        raise TooLargeError(f"a sum of {length} terms")
