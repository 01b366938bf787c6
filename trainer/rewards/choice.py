r"""Extraction of the letter of a multiple-choice answer, A to J.

The last of these forms that the response has decides, in this order:

1. a box: ``\boxed{B}``, ``\boxed{(B)}``, ``\boxed{\text{B. Paris}}``, ``\boxed{Paris}``;
2. a sentence: "The answer is (B)", "Answer: B", "the correct option is **B**";
3. the last line, if it is a letter, ``(B)`` or the text of exactly one option.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Final

from service.deferral.answer import last_boxed

LETTERS: Final = "ABCDEFGHIJ"
_MAX_CHARS: Final = 2000
"""A longer text is not the name of an option."""

_WRAPPERS: Final = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|operatorname|boxed)\s*\{([^{}]*)\}"
)
_BARE: Final = re.compile(r"[(\[]?\s*([A-Ja-j])\s*[)\]]?\s*[.:)]?")
_NAMED: Final = re.compile(
    r"(?:answer|option|choice)\s*(?:is)?\s*[:=]?\s*[(\[]?\s*([A-J])\s*[)\]]?\.?", re.IGNORECASE
)
_LETTERED: Final = re.compile(r"[(\[]?([A-J])\s*(?:[)\]]\s*[.:]?|[.:])\s*(\S.*)", re.DOTALL)
_SENTENCE: Final = re.compile(
    r"""\b(?i:answer|choice|option)\b
    (?:\s+(?i:is|are|was|would|should|must|be|therefore|thus|choice|option|letter|indeed|clearly))*
    \s*[:=]?\s*
    (?:\\(?:text|textbf|mathrm|mathbf|boxed)\s*\{|[*_$"'`(\[{]|\s)*
    (?P<letter>[A-J])
    (?![A-Za-z0-9])
    (?!(?<=[AI])\s+(?!(?:because|since|as|for|and|which|given|due)\b)[a-z])""",
    re.VERBOSE,
)  # "The answer is A good idea" is not a letter
_PARENTHESISED: Final = re.compile(r"\(([A-J])\)")
_LISTED: Final = re.compile(r"^\s*[(\[]?([A-J])[)\].:]\s*(\S.*?)\s*$", re.MULTILINE)


def options_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the texts of a row's options in the order of their letters; empty if there are none.

    Reads ``options`` or ``choices``: a list, or ``{"text": [...], "label": [...]}``. Otherwise the lines
    ``(A) ...``, ``(B) ...`` of the question, as in BBH.
    """
    for name in ("options", "choices"):
        value = row.get(name)
        if isinstance(value, Mapping):
            value = value.get("text")
        if isinstance(value, Sequence) and not isinstance(value, str) and value:
            return tuple(_without_label(str(option)) for option in value)
    listed = _LISTED.findall(str(row.get("question", "")))
    if [letter for letter, _ in listed] == list(LETTERS[: len(listed)]) and len(listed) > 1:
        return tuple(text for _, text in listed)
    return ()


def read_choice(text: str, options: Sequence[str] = ()) -> str | None:
    """Return the letter that ``text`` names as a whole, or None: a letter, a lettered option, or its text.

    Args:
        text: the content of a box, or a gold answer.
        options: option texts; letters beyond them are not accepted.
    """
    if len(text) > _MAX_CHARS:
        return None
    text = _plain(text)
    if (match := _BARE.fullmatch(text)) and match[1].isupper():
        return _known(match[1], options)
    if letter := _by_text(text, options):
        return letter
    if match := _BARE.fullmatch(text) or _NAMED.fullmatch(text):
        return _known(match[1].upper(), options)
    if (match := _LETTERED.fullmatch(text)) and not _PARENTHESISED.search(match[2]):
        return _known(match[1], options)
    return None


def find_choice(response: str, options: Sequence[str] = ()) -> str | None:
    """Return the letter of the answer that ``response`` gives, or None. See the module for the forms.

    Args:
        response: the whole response.
        options: option texts; letters beyond them are not accepted.
    """
    boxed = last_boxed(response)
    if boxed is not None:
        return read_choice(boxed, options)
    one_line = re.sub(r"\s+", " ", response)  # also keeps the pattern linear in long runs of spaces
    named = [letter for match in _SENTENCE.finditer(one_line) if (letter := _known(match["letter"], options))]
    if named:
        return named[-1]
    lines = [line for line in response.splitlines() if line.strip()]
    if not lines:
        return None
    last = lines[-1][-_MAX_CHARS:]
    if letter := read_choice(last, options):
        return letter
    in_parentheses = {letter for letter in _PARENTHESISED.findall(last) if _known(letter, options)}
    if len(in_parentheses) == 1:
        return str(in_parentheses.pop())
    mentioned = [
        letter
        for letter, option in zip(LETTERS, options, strict=False)
        if re.search(rf"(?<!\w){re.escape(_folded(option))}(?!\w)", _folded(last))
    ]
    return mentioned[0] if len(mentioned) == 1 else None


def gold_choice(gold: str, options: Sequence[str] = ()) -> str | None:
    """Return the letter of a gold answer: a letter, ``(B)``, an option's text, or an index from 0.

    An index counts only if no option has that text.
    """
    letter = read_choice(gold, options)
    if letter is None and re.fullmatch(r"\d", gold.strip()):
        return _known(LETTERS[int(gold)], options)
    return letter


def _known(letter: str, options: Sequence[str]) -> str | None:
    return letter if not options or LETTERS.index(letter) < len(options) else None


def _by_text(text: str, options: Sequence[str]) -> str | None:
    folded = _folded(text)
    matches = [letter for letter, option in zip(LETTERS, options, strict=False) if _folded(option) == folded]
    return matches[0] if len(matches) == 1 and folded else None


def _plain(text: str) -> str:
    """Remove LaTeX's text commands, dollar signs and Markdown emphasis."""
    while (plain := _WRAPPERS.sub(r"\1", text)) != text:
        text = plain
    text = re.sub(r"\\[ ,;:!]|~", " ", text).replace("\\(", "").replace("\\)", "")
    return text.strip().strip("$*_`\"'").strip()


def _folded(text: str) -> str:
    text = unicodedata.normalize("NFKC", _plain(text)).casefold()
    return re.sub(r"\s+", " ", text).strip(" .;,")


def _without_label(option: str) -> str:
    """Remove a leading ``(A)``, as the options of AGIEval have it."""
    return re.sub(r"^\s*\([A-J]\)\s*", "", option)
