"""Notation that the expression parser does not support: times, bases, mixed numbers, names and words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from trainer.rewards.normalise import LABEL_SPACE, key, may_be_product
from trainer.rewards.structure import bracketed, matrix_rows, relation, split

_CLOCK: Final = re.compile(
    r"(\d{1,2})(?:\s*:\s*(\d{2})(?:\s*:\s*(\d{2}))?)?\s*(?:\\text\{\s*([ap])\s*\.?\s*m\s*\.?\s*\}|"
    r"([ap])\s*\.\s*m\s*\.?)?",
    re.IGNORECASE,
)
_BASED: Final = re.compile(
    r"(-?)\s*\(?\s*\{?\s*(?:\\text\{)?([0-9A-Za-z.]+)\}?\s*\}?\s*\)?\s*_\s*\{?\s*(?:\\text\{)?(\d+|[a-z]+)\s*\}?\s*\}?"
)
_IN_BASE: Final = re.compile(
    r"\s*(?:_\{|\()?\s*\\text\{\s*\(?\s*(?:in\s+)?base[\s-]*([a-z]*)\s*\)?\s*\}\s*(\d*)\s*[)}]?$",
    re.IGNORECASE,
)
_NUMBER_NAMES: Final = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
    "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "sixteen": 16, "twenty": 20,
}  # fmt: skip


def _letter(letter: str) -> re.Pattern[str]:
    """Return a pattern for a letter that is not a part of a word or command."""
    return re.compile(rf"(?<![A-Za-z\\]){letter}(?![A-Za-z])")


_PARAMETER: Final = _letter("[kmn]")
_FUNCTION_OF: Final = re.compile(r"\s*([A-Za-z])\s*\(\s*([a-z])\s*\)\s*=")
_CONSTANT: Final = re.compile(r"(\+\s*)([CKck])(\s*)$")


def time_of_day(text: str) -> tuple[tuple[int, int, int], str] | None:
    """Return (hour, minute, second) and ``a`` or ``p`` of a time of day, or None."""
    match = _CLOCK.fullmatch(text)
    half = (match[4] or match[5] or "").casefold() if match else ""
    if match is None or not (match[2] or half) or int(match[1]) > 24 or int(match[2] or 0) > 59:
        return None
    return (int(match[1]), int(match[2] or 0), int(match[3] or 0)), half


def based_number(text: str, *, letters: bool = False) -> tuple[str, int] | None:
    r"""Return the digits and the base of a number such as ``101_2`` or ``101\text{ base }2``, or None.

    Args:
        text: a normalised text.
        letters: accept letters alone as digits, although they may be a product, as in ``AB_{16}``.
    """
    match = _BASED.fullmatch(_IN_BASE.sub(r"_{\1\2}", text))
    if match is None:
        return None
    base = int(match[3]) if match[3].isdigit() else _NUMBER_NAMES.get(match[3], 0)
    digits = match[2].upper()
    if not 2 <= base <= 36 or not (
        digits.isdigit()
        or (base > 10 and (letters or any(d.isdigit() for d in digits)))
        or (r"\text" in text and match[2].isupper())
    ):
        return None
    return match[1] + digits, base


def expand_mixed_numbers(text: str) -> str:
    r"""Rewrite ``2\frac{1}{2}`` and ``2 1/2`` as sums, except after ``^``, ``_`` or a letter (products)."""
    simple = r"\\frac\{(\d+)\}\{(\d+)\}"
    text = re.sub(rf"(?<![\w^_.{{}}\])\\])(\d+)\s*{simple}(?!\s*[\^!])", r"{(\1+\\frac{\2}{\3})}", text)
    return re.sub(r"(?<![\w^_.{}\])\\/])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.^!])", r"{(\1+\\frac{\2}{\3})}", text)


def is_name(text: str) -> bool:
    r"""Return True if ``text`` names a quantity, such as ``x``, ``f(3)``, ``P(A)`` or ``\angle ABC``."""
    pair = bracketed(text)
    if pair is not None and len(pair.items) > 1:
        return all(map(is_name, pair.items))
    rows = matrix_rows(text)
    if rows is not None:
        return all(is_name(cell) for row in rows for cell in row)
    bare = re.sub(r"_\{[^{}]*\}|_\w|\\text\{[^{}]*\}|'+|\^\{\*\}", "", text).replace(" ", "")
    if not bare:
        return bool(text.strip())
    if re.fullmatch(r"\\frac\{d[A-Za-z]?\}\{d[A-Za-z]\}", bare):
        return True
    if re.fullmatch(
        r"m?\\(?:angle|triangle|overline|widehat|vec|hat|bar|tilde|arc|overrightarrow)\{?[A-Za-z]+\}?", bare
    ):
        return True
    if re.fullmatch(r"\|?[A-Z]{1,4}\|?|\[[A-Z]{3,6}\]|\|\\?[A-Za-z]+\||\\(?!pi$|infty$)[a-zA-Z]+", bare):
        return True
    return bool(re.fullmatch(r"[A-Za-z](?:\([^()]*\))?", bare)) and bare not in ("e", "i")


_DOMAIN_LINK: Final = (
    r"(?:\s*(?:[,;(]|\\quad|\\forall|"
    r"\\text\{[\s,(]*(?:where|with|and|such that|for(?: all| any| every| some| each)?)\s*\}))"
)
_DOMAIN_SET: Final = r"(\\mathbb\{[A-Z]\}(?:[\^_]\{?[+*0-9]\}?)?)"
_INTEGER: Final = (
    r"(?:an?|any|some|all|every|each|arbitrary)?\s*(integers?|positive integers?|natural numbers?)"
)
_DOMAINS: Final = (
    re.compile(rf"{_DOMAIN_LINK}+\s*([A-Za-z])\s*\\in\s*{_DOMAIN_SET}\s*\)?$"),
    re.compile(rf"{_DOMAIN_LINK}+\s*([A-Za-z])\s*\\text\{{\s*(?:is|be)?\s*{_INTEGER}\s*\}}\)?$"),
    re.compile(
        rf"[,;\s]*\(?\\text\{{[\s(]*(?:where|for|with)\s+([A-Za-z])\s+(?:is|be)\s+{_INTEGER}[\s)]*\}}$"
    ),
    re.compile(rf"[,;\s]*\(?\\text\{{[\s(]*(?:where|for|with)\s+{_INTEGER}\s*\}}\s*([A-Za-z])\)?$"),
)


def split_domain(text: str) -> tuple[str, str] | None:
    r"""Split ``k\pi, k\in\mathbb{Z}`` and ``k\pi\text{ for integer }k`` into value and set of ``k``, or None.

    Conditions on inequalities are kept, because they are a part of the set.
    """
    for pattern in _DOMAINS:
        match = pattern.search(text)
        if match is None:
            continue
        value = text[: match.start()].strip()
        first, second = match.groups()
        name, numbers = (first, second) if len(first) == 1 else (second, first)
        found = relation(value)
        if re.search(rf"(?<![A-Za-z\\]){name}(?![A-Za-z]{{2}})", value) and (
            found is None or set(found.operators) == {"="}
        ):
            if not numbers.startswith("\\"):
                numbers = r"\mathbb{Z}" if numbers.startswith("integer") else r"\mathbb{N}"
            return value, key(numbers)
    return None


def named_ratio(text: str) -> tuple[str, str]:
    """Return the names and the values of ``AB:CD=3:2``; no names for other texts."""
    found = relation(text)
    if found is not None and found.operators == ("=",):
        names = split(found.operands[0], {":"})
        if len(names) > 1 and all(map(is_name, names)):
            return key(found.operands[0]), found.operands[1]
    return "", text


def number_word(text: str) -> str | None:
    r"""Return the digits of a number that is written as a word, as in ``\text{five}``, or None."""
    number = _NUMBER_NAMES.get(re.sub(r"\\text(?:bf|it)?\s*|[{}\s.]", "", text).lower())
    return None if number is None else str(number)


def with_letters_of(gold: str, answer: str) -> str:
    r"""Return ``answer`` with the letters of ``gold`` where the choice of a letter means nothing.

    These are the integer parameter of ``\frac{\pi}{4}+k\pi``, the constant of ``x^2+C`` and the argument of
    ``f(x)=x^2``.
    """
    parameters = [set(_PARAMETER.findall(text)) if r"\pi" in text else set() for text in (gold, answer)]
    if len(parameters[0]) == len(parameters[1]) == 1:
        answer = _PARAMETER.sub(parameters[0].pop(), answer)
    constants = _CONSTANT.search(gold), _CONSTANT.search(answer)
    if constants[0] and constants[1] and constants[0][2] == "C":
        answer = _CONSTANT.sub(r"\1C\3", answer)
    functions = _FUNCTION_OF.match(gold), _FUNCTION_OF.match(answer)
    if functions[0] and functions[1] and functions[0][1] == functions[1][1]:
        wanted, given = functions[0][2], functions[1][2]
        if not _letter(wanted).search(answer):
            answer = _letter(given).sub(wanted, answer)
    return answer


def right_side(text: str) -> str:
    """Return the right side of ``name = value`` or ``name \\in value``; other texts unchanged."""
    found = relation(text)
    if found is not None and found.operators in (("=",), (r"\in",)) and is_name(found.operands[0]):
        return found.operands[1]
    return text


def named_values(parts: list[str]) -> list[str] | None:
    """Return the values of ``x=1, y=2`` in the order of the names, or None."""
    found = [relation(part) for part in parts]
    pairs = [r.operands for r in found if r is not None and r.operators == ("=",)]
    if len(pairs) != len(parts) or not all(
        re.fullmatch(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?", name) for name, _ in pairs
    ):
        return None
    return [value for _, value in sorted(pairs)]


def vector(text: str) -> list[list[str]] | None:
    """Return a bracketed list of two or more items as a matrix of one row, or None."""
    pair = bracketed(text)
    if pair is None or pair.opening == r"\{" or len(pair.items) < 2:
        return None
    return [list(pair.items)]


def rows_as_list(text: str) -> str:
    """Return a system of equations as the list of its rows; other texts unchanged.

    Columns are joined if every row has a relation at the start of a column, unlike rows of a piecewise
    function, which have a value and a condition.
    """
    if not re.search(r"\\begin\{(?:cases|aligned|align|array)", text):
        return text
    rows = matrix_rows(text.removeprefix(r"\{").strip())
    if rows and all(len(row) == 1 or any(map(_RELATION_FIRST.match, row[1:])) for row in rows):
        return ", ".join(" ".join(row) for row in rows)
    return text


_RELATION_FIRST: Final = re.compile(r"[=<>]|\\(?:le|ge|ne|approx|in)(?![a-z])")
_CHOICE: Final = re.compile(
    r"(?:\\text\{)?\s*(?:\(([A-Za-z])\)[\s.:]*+|([A-E])(?:[.:]\s++|\)\s*+))\}?+\s*+(?![-+*/^_=,!])"
)
"""The letter of a choice before its content, as in ``(B) 12`` and ``B. 12``."""


@dataclass(frozen=True, slots=True)
class Words:
    """An answer in words.

    ``items`` has the letters of the items between commas, "and" and "or". ``joint`` is ``and`` or ``or`` if
    one of them is written. ``is_text`` is True if a part was marked as text.
    """

    items: tuple[str, ...]
    words: tuple[str, ...]
    joint: str
    is_text: bool

    @property
    def letters(self) -> str:
        return "".join(self.items)

    def same_items(self, other: Words) -> bool:
        """Compare up to case and punctuation within a phrase. The items of "A and B" have no order."""
        if {self.joint, other.joint} == {"and", "or"}:
            return False
        own, others = ([item.casefold() for item in side.items] for side in (self, other))
        if own == others or ((self.joint or other.joint) and sorted(own) == sorted(others)):
            return True
        # A comma within a phrase may be omitted, as in "yes, it is".
        return len(own) != len(others) and [*map(str.casefold, self.words)] == [
            *map(str.casefold, other.words)
        ]


def words(text: str) -> Words | None:
    r"""Return the words of a normalised text that consists only of words, such as ``\text{east}`` or
    ``(A)``."""
    bare = re.sub(r"\\(and|or) ?", r" \1, ", text)
    bare, found = re.subn(r"\\text\{([^{}]*)\}", r" \1 ", bare)
    bare = LABEL_SPACE.sub(", ", bare)
    joint = re.search(r"(?<![A-Za-z])(and|or)(?![A-Za-z])", bare)
    bare = re.sub(r"(?<![A-Za-z])(?:and|or)(?![A-Za-z]),?", ",", bare)
    if not re.fullmatch(r"[A-Za-z\s.,;:'!?()-]+", bare) or (not found and re.search(r"[-'!,;]", bare)):
        return None
    letters = re.sub(r"[^A-Za-z]", "", bare)
    if not letters or (not found and "(" in bare and not re.fullmatch(r"\s*\([A-Za-z]\)\s*", bare)):
        return None
    if not found and re.search(r"[A-Za-z]\s+[A-Za-z]", bare):
        return None
    items = [re.sub(r"[^A-Za-z]", "", item) for item in re.split(r"[,;]", bare)]
    return Words(
        tuple(item for item in items if item),
        tuple(re.findall(r"[A-Za-z]+", bare.replace("'", ""))),
        joint[1] if joint else "",
        bool(found) or "(" in bare,
    )


def same_words(gold: str, answer: str) -> bool | None:
    """Compare answers in words; None if they are not words or may be products of variables."""
    g, a = words(gold), words(answer)
    if g is None and a is not None and len(a.letters) == 1:
        choice = _CHOICE.match(gold)
        return a.letters in choice.groups() if choice else None
    if g is not None and a is None and len(g.letters) == 1:
        choice = _CHOICE.match(answer)
        # A bare letter may be a variable, and then the rest a factor.
        if choice and (g.is_text or ("A" <= g.letters <= "E" and not answer[choice.end() :].startswith("("))):
            return g.letters in choice.groups()
    if g is None or a is None:
        return None
    if g.items == a.items and g.joint == a.joint:
        return True
    if len(g.letters) == 1 or len(a.letters) == 1:
        return False
    if g.is_text or a.is_text:
        return g.same_items(a)
    if len(g.letters) == 2:
        return None
    if g.letters.islower() and may_be_product(g.letters):
        return None
    return (
        g.letters.casefold() == a.letters.casefold() and g.letters[1:].islower() and a.letters[1:].islower()
    )
