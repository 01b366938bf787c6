"""Answers in words: names, choices, yes and no."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_CHOICE: Final = re.compile(r"(?:\\text\{)?\s*\(([A-Za-z])\)[\s.:]*+\}?+\s*+(?![-+*/^_=,!])")
"""A choice before its content: ``(B) 12``."""


@dataclass(frozen=True, slots=True)
class Words:
    """An answer without mathematics. ``is_text``: some of it was marked as text, not bare letters."""

    letters: str
    is_text: bool


def words(text: str) -> Words | None:
    r"""The words of a normalised text that has nothing else: ``\text{east}``, ``(A)``, ``BAC``. Else None."""
    bare = re.sub(r"\\(?:and|or) ?", ",", text)
    bare, found = re.subn(r"\\text\{([^{}]*)\}", r" \1 ", bare)
    if not re.fullmatch(r"[A-Za-z\s.,;:'!?()-]+", bare) or (not found and re.search(r"[-'!,;]", bare)):
        return None
    letters = re.sub(r"[^A-Za-z]", "", bare)
    if not letters or (not found and "(" in bare and not re.fullmatch(r"\s*\([A-Za-z]\)\s*", bare)):
        return None
    if not found and re.search(r"[A-Za-z]\s+[A-Za-z]", bare):
        return None
    return Words(letters, bool(found) or "(" in bare)


def same_words(gold: str, answer: str) -> bool | None:
    """Compare answers in words; None if neither is, or they may as well be products of variables."""
    g, a = words(gold), words(answer)
    if g is None and a is not None and len(a.letters) == 1:
        choice = _CHOICE.match(gold)
        return choice[1] == a.letters if choice else None
    if g is None or a is None:
        if g is not None and g.is_text and len(g.letters) == 1 and a is None:
            choice = _CHOICE.match(answer)
            return choice[1] == g.letters if choice else None
        return None
    if g.letters == a.letters:
        return True
    if len(g.letters) == 1 or len(a.letters) == 1:
        return False
    if g.is_text or a.is_text:
        return g.letters.casefold() == a.letters.casefold()
    if len(g.letters) == 2:
        return None
    if g.letters.islower() and (list(g.letters) == sorted(g.letters) or not re.search("[aeiou]", g.letters)):
        return None  # a product is written in alphabetical order, and needs no vowels
    return (
        g.letters.casefold() == a.letters.casefold() and g.letters[1:].islower() and a.letters[1:].islower()
    )
