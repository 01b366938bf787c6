"""Numbers with words between them, such as units, counted things or remarks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from trainer.rewards.normalise import strip_punctuation
from trainer.rewards.units import SCALES, Unit, find_unit

_TEXT: Final = re.compile(r"\\text\{([^{}]*)\}")
_POWER: Final = re.compile(r"\s*\^\s*\{?\s*([23])\s*\}?")
_QUALIFIERS: Final = frozenset({
    "not", "no", "never", "except", "least", "most", "more", "less", "greater", "fewer", "over", "under",
    "below", "above", "than", "either", "between", "non", "minus", "negative", "plus", "times", "half",
    "twice", "about", "approximately", "only", "or", "and", "false", "wrong", "unless", "without",
    "multiple", "multiples", "divides", "squared",
})  # fmt: skip
"""Words that change the meaning of a number. Answer and gold answer must have the same ones."""


_OPPOSITES: Final = (
    {"am", "pm"}, {"north", "south", "east", "west"}, {"left", "right"}, {"up", "down"},
    {"clockwise", "counterclockwise"},
    {"gain", "profit", "loss"}, {"increase", "decrease"}, {"heads", "tails"}, {"even", "odd"},
)  # fmt: skip
"""Groups of exclusive words: an answer may omit the word but not use another one of the group."""


@dataclass(frozen=True, slots=True)
class Segments:
    """The numbers of a text with the words after each. ``before`` has the words before the first number."""

    numbers: tuple[str, ...]
    after: tuple[str, ...]
    before: str

    @property
    def words(self) -> str:
        return " ".join((self.before, *self.after)).strip()

    @property
    def qualifiers(self) -> frozenset[str]:
        if self._unit() is not None or (self.words.casefold().strip(" .") == "times" and not self.before):
            return frozenset()
        return frozenset(re.findall(r"[a-z]+", self.words.casefold())) & _QUALIFIERS

    def contradicts(self, other: Segments) -> bool:
        """Return True if the words contradict those of ``other``, as ``a.m.`` and ``p.m.`` do."""
        own, others = (set(re.findall(r"[a-z]+", s.words.casefold().replace(".", ""))) for s in (self, other))
        return any(own & group and others & group and own & group != others & group for group in _OPPOSITES)

    def same_words(self, other: Segments) -> bool:
        """Return True if the words are equal up to case, spaces and plurals."""
        return [_plain(w) for w in (self.before, *self.after)] == [
            _plain(w) for w in (other.before, *other.after)
        ]

    def factor(self, other: Segments) -> Fraction | None:
        """Return the conversion factor from ``other``'s unit to this one, or None if the units do not
        agree."""
        own, others = self._unit(), other._unit()
        scale = other._scale() / self._scale()
        if own is None or others is None or "unit" in (own.dimension[:1] + others.dimension[:1])[0]:
            return scale
        if own.dimension != others.dimension:
            return None
        return scale * others.factor / own.factor

    def total(self) -> tuple[tuple[tuple[str, int], ...], Fraction] | None:
        """Return dimension and sum of amounts in units of one dimension; None for anything else."""
        total, dimension = Fraction(0), None
        for number, word in zip(self.numbers, self.after, strict=True):
            unit = find_unit(_without_joints(word))
            if (
                unit is None
                or not re.fullmatch(r"\d+(\.\d+)?", number)
                or dimension not in (None, unit.dimension)
            ):
                return None
            dimension = unit.dimension
            total += Fraction(number) * unit.factor
        return None if dimension is None else (dimension, total)

    @property
    def has_unit(self) -> bool:
        return self._unit() is not None

    def _unit(self) -> Unit | None:
        word = self.after[0] if len(self.after) == 1 else ""
        return find_unit(re.sub(rf"\b(?:{'|'.join(SCALES)})s?\b", "", word, flags=re.IGNORECASE))

    def _scale(self) -> Fraction:
        word = self.after[0].casefold() if len(self.after) == 1 else ""
        return Fraction(next((value for name, value in SCALES.items() if re.search(rf"\b{name}\b", word)), 1))


def _without_joints(word: str) -> str:
    return re.sub(r"^and\b|\band$", "", word.strip(" ,."), flags=re.IGNORECASE).strip()


def _plain(word: str) -> str:
    return re.sub(r"s\b|[^a-z0-9]", "", word.casefold())


def segments(text: str) -> Segments | None:
    r"""Split a normalised text with ``\text{...}`` into numbers and words; None if that is not possible."""
    pieces = _TEXT.split(text)
    numbers: list[str] = []
    after: list[str] = []
    before = ""
    for at, piece in enumerate(pieces):
        if at % 2:
            if numbers:
                after[-1] = f"{after[-1]} {piece}".strip()
            else:
                before = f"{before} {piece}".strip()
            continue
        power = _POWER.match(piece)
        if power and numbers and at:
            after[-1] += f"^{power[1]}"
            piece = piece[power.end() :]
        if numbers and piece.strip() in ("/", r"\cdot", "-"):
            after[-1] += piece.strip().replace(r"\cdot", " ")
            continue
        number = strip_punctuation(re.sub(r"^\s*[=:]\s*|\s*[=:]\s*$", "", piece)).strip()
        if not number or number in ("{", "}", "(", ")"):
            continue
        numbers.append(number)
        after.append("")
    return Segments(tuple(numbers), tuple(after), before)
