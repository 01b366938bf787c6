r"""Structure of normalised answers as text: lists, brackets, relations and matrices."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

_TOKEN: Final = re.compile(r"\\(?:begin|end)\{[a-z*]+\}|\\text\{[^{}]*\}|\\[A-Za-z]+|\\.|.", re.DOTALL)
_OPENING: Final = {"(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil"}
_CLOSING: Final = {")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil"}
LIST_SEPARATORS: Final = frozenset({",", ";", r"\and", r"\or", r"\quad"})
INEQUALITIES: Final = frozenset({"<", ">", r"\le", r"\ge"})
RELATIONS: Final = INEQUALITIES | {
    "=", r"\ne", r"\approx", r"\in", r"\notin", r"\equiv", r"\mid", r"\nmid", r"\to", r"\sim", r"\subset",
    r"\subseteq", r"\implies", r"\Rightarrow", r"\iff", r"\Leftrightarrow", r"\perp", r"\parallel", r"\cong",
}  # fmt: skip


def top_level(text: str) -> Iterator[tuple[int, str]]:
    """Yield position and text of the tokens outside all brackets."""
    depth = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in _CLOSING or token.startswith(r"\end{"):
            depth -= 1
        elif token in _OPENING or token.startswith(r"\begin{"):
            depth += 1
        elif depth == 0:
            yield match.start(), token


def split(text: str, separators: Collection[str]) -> list[str]:
    """Split ``text`` at ``separators`` outside brackets; empty parts are omitted."""
    parts, start = [], 0
    for at, token in top_level(text):
        if token in separators:
            parts.append(text[start:at].strip())
            start = at + len(token)
    parts.append(text[start:].strip())
    return [part for part in parts if part]


_MAX_SIGNS: Final = 4
"""Maximum number of independent plus-minus signs in one element."""


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain such as ``0 < x \\le 1``: with one operand more than operators. The first operand may be
    empty."""

    operands: tuple[str, ...]
    operators: tuple[str, ...]


def relation(text: str) -> Relation | None:
    """Return the top-level relation of ``text``, or None."""
    operands, operators, start = [], [], 0
    for at, token in top_level(text):
        if token in RELATIONS:
            operands.append(text[start:at].strip())
            operators.append(token)
            start = at + len(token)
    if not operators:
        return None
    return Relation((*operands, text[start:].strip()), tuple(operators))


@dataclass(frozen=True, slots=True)
class Bracketed:
    """A text enclosed in one pair of brackets. ``opening`` and ``closing`` are tokens."""

    opening: str
    closing: str
    items: tuple[str, ...]
    inner: str


def bracketed(text: str) -> Bracketed | None:
    """Return the brackets around all of ``text``, or None. Angle brackets count as parentheses."""
    opening = next((b for b in ("(", "[", r"\{", r"\langle") if text.startswith(b)), None)
    if opening is None:
        return None
    depth = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        depth += (token in _OPENING or token.startswith(r"\begin{")) - (
            token in _CLOSING or token.startswith(r"\end{")
        )
        if depth == 0:
            if match.end() != len(text) or token not in (")", "]", r"\}", r"\rangle"):
                return None
            inner = text[len(opening) : match.start()].strip()
            names = {r"\langle": "(", r"\rangle": ")"}
            return Bracketed(
                names.get(opening, opening), names.get(token, token), tuple(split(inner, (",", ";"))), inner
            )
    return None


def strip_outer(text: str) -> str:
    """Remove braces and parentheses around a text that is not a list."""
    while True:
        text = text.strip()
        if text.startswith("{") and _closes_at_end(text):
            text = text[1:-1]
            continue
        found = bracketed(text)
        if found and (found.opening, found.closing) == ("(", ")") and len(found.items) == 1:
            text = found.inner
            continue
        return text


def _closes_at_end(text: str) -> bool:
    depth = 0
    for match in _TOKEN.finditer(text):
        depth += (match[0] == "{") - (match[0] == "}")
        if depth == 0:
            return match.end() == len(text)
    return False


def elements(text: str) -> list[str]:
    r"""Return the elements of a list without brackets. ``\pm`` gives two elements; domain conditions are
    dropped."""
    parts = split(text, LIST_SEPARATORS)
    if len(parts) > 1:
        domains = [part for part in parts if re.search(r"\\in\s*(?:\\mathbb\{[ZNQRC]\})", part)]
        if len(domains) < len(parts):
            parts = [part for part in parts if part not in domains]
    return [value for part in parts for value in _signs(part)]


def _signs(part: str) -> list[str]:
    r"""Return ``part`` with each choice of signs, which are independent unless ``\mp`` pairs them."""
    found = relation(part)
    pair = bracketed(found.operands[-1] if found else part)
    signs = len(re.findall(r"\\pm(?![a-z])", part))
    if not re.search(r"\\[pm]{2}(?![a-z])", part) or (pair is not None and pair.opening == r"\{"):
        return [part]
    if r"\mp" in part or signs > _MAX_SIGNS:
        choices = [("+",) * signs, ("-",) * signs]
    else:
        choices = list(itertools.product("+-", repeat=signs))
    values = []
    for choice in choices:
        left = iter(choice)
        text = re.sub(r"\\pm(?![a-z])", lambda _, left=left: next(left), part)  # type: ignore[misc]
        text = text.replace(r"\mp", "-" if "+" in choice else "+").lstrip("+ ")
        values.append(re.sub(r"(?<=[=({,])\s*\+", "", text))
    return values


def named_list(parts: list[str]) -> tuple[str, list[str]] | None:
    """Return variable and values of ``x=1, x=2`` or ``x=1, 2``, or None."""
    relations = [relation(part) for part in parts]
    first = relations[0]
    if first is None or first.operators != ("=",):
        return None
    name = first.operands[0].replace(" ", "")
    if not re.fullmatch(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?'*(?:\([A-Za-z]\))?", name):
        return None
    rest = []
    for part, found in zip(parts, relations, strict=True):
        if found is None:
            rest.append(part)
        elif found.operators == ("=",) and found.operands[0].replace(" ", "") == name:
            rest.append(found.operands[1])
        else:
            return None
    return name, rest


def is_equation(text: str) -> bool:
    """Return True if ``text`` is a relation with a top-level equals sign."""
    found = relation(text)
    return found is not None and "=" in found.operators


def matrix_rows(text: str) -> list[list[str]] | None:
    """Return the cells of a matrix environment, with or without brackets around it, or None."""
    match = re.fullmatch(
        r"[(\[]?\s*\\begin\{([pbB]?matrix|smallmatrix|array|cases|aligned|align)\}(.*)\\end\{\1\}\s*[)\]]?",
        text,
        re.DOTALL,
    )
    if match is None or r"\begin" in match[2]:
        return None
    body = re.sub(r"^\s*\{[lcr|\s]*\}", "", match[2]) if match[1] == "array" else match[2]
    rows = [row for row in re.split(r"\\\\", body) if row.strip()]
    return [[cell.strip() for cell in row.split("&")] for row in rows]
