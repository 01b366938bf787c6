"""Rewriting of normalised LaTeX for the grammar of math-verify's parser."""

from __future__ import annotations

import itertools
import re
from typing import Final

_FUNCTION: Final = re.compile(
    r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?(?![A-Za-z])|\\(?:log|ln|exp)(?![A-Za-z])"
)
_SCRIPTS: Final = re.compile(r"(?:\s*[\^_]\s*(?:\{(?:[^{}]|\{[^{}]*\})*\}|\w))*\s*")
_TOKEN: Final = re.compile(r"\\[A-Za-z]+|\\.|\s+|.", re.DOTALL)
_OPENING: Final = {"(", "[", "{", r"\{", r"\lfloor", r"\lceil"}
_CLOSING: Final = {")", "]", "}", r"\}", r"\rfloor", r"\rceil"}
_VARIABLE: Final = re.compile(r"\\(?!pi|frac|sqrt)[a-z]+|(?<![\\A-Za-z])[A-Za-z]")
_MAX_DEPTH: Final = 30
"""Maximum depth of nested brackets; parsing more takes seconds."""
_MAX_BARS: Final = 60
"""Maximum number of vertical bars, each of which may open or close an absolute value."""


def for_parser(text: str) -> str | None:
    """Rewrite notation that the parser's grammar does not support; None if the parser would misread it."""
    if re.search(
        r"\d\s+\d|(?<![_{\d])\d+\}?\s*_|\d\s*'|\d\s*\\text|\\quad|\\text\{[^{}]*[^A-Za-z{}][^{}]*\}", text
    ):
        return None
    if "/" in text:
        # 1/2x means half of x; the parser would divide by 2x.
        text = re.sub(r"(?<![\w}.^_])(\d+)\s*/\s*(\d+)(?![\d.!^])\s*(?=[A-Za-z\\(])", r"\\frac{\1}{\2}", text)
    if _depth(text) > _MAX_DEPTH or text.count("|") > _MAX_BARS:
        return None
    # The parser computes the gamma function of a number exactly, however large it is.
    text = re.sub(r"\\Gamma\s*\(((?:[^()]|\([^()]*\))*)\)", r"(((\1)-1)!)", text)
    text = re.sub(r"(!+)\s*\^\s*(\{[^{}]*\}|\w)", r"\1^\2", text)
    text = re.sub(r"(\d+|[A-Za-z])(!!?)\^", r"(\1\2)^", text)
    text = re.sub(r"(\((?:[^()]|\([^()]*\))*\))(!!?)\^", r"{\1\2}^", text)
    text = re.sub(r"([A-Za-z])('+)", _prime, text)
    text = re.sub(r"_\{?\\(max|min)\s*\}?", r"_{\1}", text)
    text = re.sub(r"_\{([^{}]*)\}", _subscript, text)
    text = text.replace(r"\|", "|")
    text = re.sub(
        r"\\gamma(?![A-Za-z])|\\Gamma(?!\s*\(|[A-Za-z])", lambda m: rf"\text{{{m[0][1:]}letter}}", text
    )
    text = _plain_letter("I", text)
    if r"\int" not in text and not re.search(r"\\frac\s*\{\s*d\s*\}", text):
        text = _plain_letter("d", text)
    text = _close_arguments(text)
    text = re.sub(r"\)\s*(?=\d)", r")\\cdot ", text)
    return re.sub(r"\^\{\*\}", "", text)


def _depth(text: str) -> int:
    """Return the depth of the nested brackets in ``text``, closed or not."""
    depths = itertools.accumulate((sign in "([{") - (sign in ")]}") for sign in text)
    return max(depths, default=0)


def _plain_letter(letter: str, text: str) -> str:
    """Write letters with a special meaning in the parser (``I``, ``dx``) as symbols."""
    if letter not in text:
        return text
    pieces = re.split(r"(\\text\{[^{}]*\}|\\[A-Za-z]+|_\{[^{}]*\}|_\w)", text)
    pieces[::2] = [piece.replace(letter, rf"\text{{{letter}}}") for piece in pieces[::2]]
    return "".join(pieces)


def _subscript(match: re.Match[str]) -> str:
    """Keep a subscript that is a name as one word."""
    if re.search(r"=|\\to(?![a-z])", match[1]):
        return match[0]
    return "_{" + re.sub(r"\\text|[\\{}\s]", "", match[1]) + "}"


def _prime(match: re.Match[str]) -> str:
    return f"{match[1]}_{{{'prime' * len(match[2])}}}"


def _close_arguments(text: str) -> str:
    r"""Put brackets around arguments that end at a multiplication or division sign.

    The parser reads ``\cos x\cdot\sin x`` as the cosine of a product, and ``\ln a/\ln b`` as a logarithm of
    a quotient. ``\sin 2\cdot\pi`` and ``\cos\pi/3`` remain.
    """
    for function in reversed(list(_FUNCTION.finditer(text))):
        scripts = _SCRIPTS.match(text, function.end())
        start = scripts.end() if scripts else function.end()
        end = None if text.startswith("(", start) else _argument_end(text, start)
        if end is not None:
            argument = re.sub(r"^\{([^{}]*)\}$", r"\1", text[start:end].strip())
            text = f"{text[:start]}({argument}){text[end:]}"
    return text


def _argument_end(text: str, start: int) -> int | None:
    """Return the position of the sign at which an argument without brackets ends, or None."""
    depth = 0
    absolute = text.startswith("|", start)
    for token in _TOKEN.finditer(text, start):
        sign, at = token[0], token.start()
        if sign in _OPENING:
            depth += 1
        elif sign in _CLOSING:
            depth -= 1
            if depth < 0:
                return None
        elif absolute and sign == "|" and depth == 0 and at > start:
            absolute = False
        elif depth or absolute or at == start:
            continue
        elif sign in (r"\cdot", r"\times", "/"):
            argument, rest = text[start:at].strip(), text[token.end() :].lstrip(" ({")
            return at if argument and _ends_argument(argument, sign, rest) else None
        elif sign in ("+", "-", "|", "=", ",") or _FUNCTION.fullmatch(sign):
            return None
    return None


def _ends_argument(argument: str, sign: str, rest: str) -> bool:
    if _FUNCTION.match(rest):
        return True
    if sign == "/":
        variable = _VARIABLE.match(rest)
        return variable is not None and variable[0] in _VARIABLE.findall(argument)
    return not argument.isdigit() or _VARIABLE.match(rest) is not None
