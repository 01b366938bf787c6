r"""Extraction of the letter of a multiple-choice answer, A to J.

The last of these forms that the response has decides, in this order. A sentence with several letters gives
none, and a negated one does not count:

1. a box: ``\boxed{B}``, ``\boxed{(B)}``, ``\boxed{\text{B. Paris}}``, ``\boxed{Paris}``;
2. a sentence: "The answer is (B)", "Answer: B", "B is the correct answer", else "option B";
3. the last line, if it is a letter, ``(B)`` or the text of exactly one option.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Final

from service.deferral.answer import last_boxed
from trainer.rewards.normalise import key, normalise

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
_FILLER: Final = (
    r"is|are|was|would|should|must|be|to|therefore|thus|hence|then|choice|option|letter|the|indeed|clearly|"
    r"most|likely|probably|definitely|certainly|obviously|simply|actually|surely"
)
_LETTER: Final = r"""
    (?:\\(?:text|textbf|mathrm|mathbf|boxed)\s*\{|\\[(\[]|[*_$"'“`(\[{]|\s)*
    (?P<letter>[A-J])
    (?![A-Za-z0-9])
    (?!(?<=[AI])\s+(?!(?:because|since|as|for|and|or|which|given|due|is|was|cannot|can|does)\b)[a-z])
"""  # "The answer is A good idea" is not a letter
_ANSWER: Final = re.compile(
    rf"""(?<![A-Za-z])(?i:answer|(?:correct|right|best)\s+(?:choice|option|one|letter))(?![A-Za-z])
    (?:,?\s+(?i:{_FILLER})\b)*(?:(?:(?<=therefore)|(?<=thus)|(?<=hence)),)?\s*[*_]{{0,3}}\s*[:=–-]?{_LETTER}""",
    re.VERBOSE,
)
_IS_ANSWER: Final = re.compile(
    r"""(?<![A-Za-z0-9])(?P<letter>[A-J])[)\]*_$}"'\\]{0,6}\s+(?i:is|must\s+be|would\s+be)
    (?:\s+(?i:indeed|clearly|therefore|thus|most|likely|probably|definitely))*
    \s+(?i:(?:the\s+)?(?:correct|right|best|final)(?:\s+(?:answer|option|choice|one|letter))?|the\s+answer)\b""",
    re.VERBOSE,
)
_OPTION: Final = re.compile(
    rf"\b(?i:choice|option|pick|choose|select)\b(?:\s+(?i:is|letter))*\s*[:=]?{_LETTER}", re.VERBOSE
)
_NEGATED_BEFORE: Final = re.compile(
    r"(?:\b(?:wrong|incorrect|false|other|another|not(?:\s+an?)?|if|whether|unlike|neither|nor|than|instead\s+of|"
    r"eliminat\w+|rul\w+\s+out|exclud\w+|reject\w*|discard\w*|cannot\s+be|suppos\w+|assum\w+)|"
    r"n't|(?:n't|\bnot)\s+(?:think|believe|say|mean|claim|conclude|sure|certain))"
    r"(?:\s+(?:be|that|the|of|both|either|correct|right|final|best))*\W*$",
    re.IGNORECASE,
)
_NEGATED_AFTER: Final = re.compile(
    r"[)\]*_$}\"'\\]{0,6}(?:\s+\([^()]{0,80}\))?\s+(?:(?:is|was|are|would|can|could|must|should|seems|looks)"
    r"(?:\s+(?:be|also|clearly|obviously|therefore|thus|definitely|probably|likely))*"
    r"\s+(?:not|wrong|incorrect|false|eliminated|invalid|ruled|excluded|out|unlikely|impossible|rejected)\b|"
    r"(?:is|was|are|does|do|would|could|can)n't\b|cannot\b|does\s+not\b|fails\b)",
    re.IGNORECASE,
)
_SECOND_LETTER: Final = re.compile(
    r"""[)\]*_$}"'\\.]{0,6}\s*
    (?:(?:,\s*)?\(?(?i:or|and|nor|and/or)\b(?:\s+(?i:option|choice)\b)?[\s(\[*_$"'\\]{0,8}[A-J](?![A-Za-z0-9])(?!(?<=I)\s+[a-z])
    |(?<!\.)[,;/&+]\s*[\s(\[*_$"'\\]{0,8}[A-J](?![A-Za-z0-9])(?!\s+[a-z]))""",
    re.VERBOSE,
)
_LETTER_BEFORE: Final = re.compile(
    r"(?<![A-Za-z0-9])[A-J][)\]*_$.]{0,4}\s*(?:[,/&]|\bor|\band|\bnor)\W{0,8}$"
)
_NEGATION: Final = re.compile(
    r"\b(?:not|cannot|wrong|incorrect|neither|except|false|eliminated|excluded|rejected|ruled)\b|n't\b",
    re.IGNORECASE,
)
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
        return read_choice(boxed, options) or _stated(_plain(boxed[:_MAX_CHARS]), options)[1]
    found, letter = _stated(response, options)
    if found:
        return letter
    lines = [line for line in response.splitlines() if line.strip()]
    if not lines:
        return None
    last = lines[-1][-_MAX_CHARS:]
    if letter := read_choice(last, options):
        return letter
    if _NEGATION.search(last):
        return None
    in_parentheses = {letter for letter in _PARENTHESISED.findall(last) if _known(letter, options)}
    if len(in_parentheses) == 1:
        return str(in_parentheses.pop())
    mentioned = [
        letter
        for letter, option in zip(LETTERS, options, strict=False)
        if re.search(rf"(?<!\w){re.escape(_folded(option))}(?!\w)", _folded(last))
    ]
    return mentioned[0] if len(mentioned) == 1 else None


def _stated(text: str, options: Sequence[str]) -> tuple[bool, str | None]:
    """Return True and the letter of the last sentence that names the answer; None if it names several.

    A sentence such as "option B" counts only if none says "the answer is B". Negated sentences do not count.
    """
    text = re.sub(r"\s+", " ", text)  # also keeps the patterns linear in long runs of spaces
    for patterns in ((_ANSWER, _IS_ANSWER), (_OPTION,)):
        last: tuple[int, str | None] | None = None
        for match in itertools.chain.from_iterable(pattern.finditer(text) for pattern in patterns):
            at = match.end("letter")
            before = text[max(match.start() - 60, 0) : match.start()]
            if (
                (last is not None and at < last[0])
                or _NEGATED_BEFORE.search(before)
                or _NEGATED_AFTER.match(text, at)
                or not _known(match["letter"], options)
            ):
                continue
            several = _SECOND_LETTER.match(text, at) or (
                match.re is not _ANSWER and _LETTER_BEFORE.search(before)
            )
            last = at, None if several else match["letter"]
        if last is not None:
            return True, last[1]
    return False, None


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
    if not folded:
        return None
    for same in (_folded, _spelling):
        wanted = same(text)
        matches = [letter for letter, option in zip(LETTERS, options, strict=False) if same(option) == wanted]
        if matches:
            return matches[0] if len(matches) == 1 else None
    return None


def _spelling(text: str) -> str:
    r"""Return ``text`` without typographic variants of LaTeX, such as ``\frac12`` and ``\frac{1}{2}``."""
    return key(normalise(text))


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
