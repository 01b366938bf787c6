"""Units of measurement and their conversions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

Dimension = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit: base dimensions with their powers, and the factor to the base unit."""

    dimension: Dimension
    factor: Fraction


def _table() -> dict[str, Unit]:
    spellings: dict[tuple[str, str], str] = {
        ("length", "1"): "m metre meter metres meters",
        ("length", "1/100"): "cm centimetre centimeter centimetres centimeters",
        ("length", "1/1000"): "mm millimetre millimeter millimetres millimeters",
        ("length", "1/10"): "dm decimetre decimeter decimetres decimeters",
        ("length", "1000"): "km kms kilometre kilometer kilometres kilometers",
        ("length", "0.3048"): "ft foot feet",
        ("length", "0.0254"): "in inch inches",
        ("length", "0.9144"): "yd yard yards",
        ("length", "1609.344"): "mi mile miles",
        ("mass", "1"): "g gram grams gm gms",
        ("mass", "1000"): "kg kgs kilogram kilograms kilo kilos",
        ("mass", "1/1000"): "mg milligram milligrams",
        ("mass", "1000000"): "ton tons tonne tonnes",
        ("mass", "453.59237"): "lb lbs",
        ("mass", "28.349523125"): "oz ounce ounces",
        ("time", "1"): "s sec secs second seconds",
        ("time", "1/1000"): "ms millisecond milliseconds",
        ("time", "60"): "min mins minute minutes",
        ("time", "3600"): "h hr hrs hour hours",
        ("time", "86400"): "day days",
        ("time", "604800"): "week weeks",
        ("month", "1"): "month months",
        ("month", "12"): "year years yr yrs",
        ("dollar", "1"): "dollar dollars usd",
        ("dollar", "1/100"): "cent cents",
        ("euro", "1"): "euro euros eur",
        ("sterling", "1"): "gbp",
        ("volume", "1"): "l litre liter litres liters",
        ("volume", "1/1000"): "ml millilitre milliliter millilitres milliliters",
        ("gallon", "1"): "gallon gallons gal",
        ("gallon", "1/4"): "quart quarts",
        ("gallon", "1/8"): "pint pints",
        ("gallon", "1/16"): "cup cups",
        ("area", "1"): "acre acres",
        ("hectare", "1"): "hectare hectares",
        ("volt", "1"): "volt volts",
        ("watt", "1"): "watt watts",
        ("newton", "1"): "newton newtons",
        ("joule", "1"): "joule joules",
        ("unit", "1"): "unit units",
    }
    return {
        word: Unit(((dimension, 1),), Fraction(factor))
        for (dimension, factor), words in spellings.items()
        for word in words.split()
    } | {
        "mph": Unit((("length", 1), ("time", -1)), Fraction("1609.344") / 3600),
        "kph": Unit((("length", 1), ("time", -1)), Fraction(1000, 3600)),
        "kmph": Unit((("length", 1), ("time", -1)), Fraction(1000, 3600)),
        "kmh": Unit((("length", 1), ("time", -1)), Fraction(1000, 3600)),
        "cc": Unit((("length", 3),), Fraction(1, 10**6)),
    }


_UNITS: Final = _table()
UNIT_WORDS: Final = frozenset(word for word in _UNITS if len(word) > 1) | {
    "pounds", "pound", "square", "squared", "cubic", "cubed", "per", "sq", "cu", "people", "students", "ways",
    "points", "coins", "apples", "men", "women", "boys", "girls", "th", "st", "nd", "rd", "am", "pm",
    "rupees", "rs", "mol", "kw", "mw", "hz", "khz", "mhz", "ohms",
}  # fmt: skip
"""Words that are units or annotations after a number. Single letters are variables."""

LENGTHS: Final = frozenset(word for word, unit in _UNITS.items() if unit.dimension == (("length", 1),))
"""Units whose squares and cubes are units."""
PRODUCT_WORDS: Final = frozenset({
    "mg", "ms", "ml", "gm", "dm", "lb", "rs", "kw", "mw", "am", "pm", "st", "nd", "rd",
})  # fmt: skip
"""Units that are products of two variables if no space separates them from the number, as in ``2mg``."""

SCALES: Final = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
}  # fmt: skip


def find_unit(words: str) -> Unit | None:
    r"""Return the unit that ``words`` spell, such as ``cm^2`` or ``miles per hour``, or None."""
    text = words.casefold().replace("{", "").replace("}", "").replace(".", " ").replace("~", " ").strip()
    top, *below = re.split(r"\bper\b|/", text)
    if len(below) > 1:
        return None
    unit = _product(top)
    if unit is None or not below:
        return unit
    bottom = _product(below[0])
    if bottom is None:
        return None
    powers = dict(unit.dimension)
    for name, power in bottom.dimension:
        powers[name] = powers.get(name, 0) - power
    return Unit(tuple(sorted((n, p) for n, p in powers.items() if p)), unit.factor / bottom.factor)


def _product(text: str) -> Unit | None:
    match = re.fullmatch(
        r"\s*(?:(sq|square|cu|cubic)\s+)?([a-z]+)\s*(?:\^?\s*([23])|(squared|cubed))?\s*", text
    )
    if match is None or match[2] not in _UNITS:
        return None
    unit = _UNITS[match[2]]
    power = 2 if match[1] in ("sq", "square") or match[4] == "squared" else 3 if match[1] or match[4] else 1
    power = int(match[3]) if match[3] else power
    return Unit(tuple((name, p * power) for name, p in unit.dimension), unit.factor**power)
