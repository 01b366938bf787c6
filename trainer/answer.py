"""Knowing an answer that would blow up a computer algebra system."""

from __future__ import annotations

import math
import re

MAX_FACTORIAL = 5_000
MAX_EXPONENT = 100_000
MAX_DIGITS = 1_000

_SPACING = re.compile(r"\\[!,;: ]|\\(?:left|right)(?![a-zA-Z])|\s+")
_NUMERIC_POWER = re.compile(r"(\d+)\}?\^\{?(\d+)")
_OPEN = {")": "(", "}": "{", "]": "["}


def is_explosive(answer: str) -> bool:
    """True for LaTeX of a value beyond all proportion: huge factorials, towers of powers, endless numbers.

    Working these out can take minutes and gigabytes, in C code that no signal interrupts. This look costs
    microseconds. It is a first line only: what it lets through still runs against the deadline.
    """
    text = _SPACING.sub("", answer)
    if re.search(rf"\d{{{MAX_DIGITS}}}", text):
        return True
    return any(
        _explosive_factorial(text[: m.start()]) if m.group() == "!" else _explosive_power(text[m.end() :])
        for m in re.finditer(r"[!^]|\*\*", text)
    )


def _explosive_factorial(before: str) -> bool:
    """``before``: all that stands left of the exclamation mark."""
    if before.endswith("!"):
        base = before.rstrip("!")
        return len(before) - len(base) > 1 or _largest_integer(_last_group(base)) > 20
    operand = _last_group(before)
    return bool(re.search(r"[!^]", operand)) or _largest_integer(operand) > MAX_FACTORIAL


def _explosive_power(after: str) -> bool:
    """``after``: all that stands right of the caret."""
    exponent = _first_group(after)
    if "!" in exponent or _largest_integer(exponent) > MAX_EXPONENT:
        return True
    if after[len(exponent) :].startswith(("^", "**")):  # 9^9^9
        return True
    if exponent.count("^") > 1 and re.search(r"\^\{?[^{}]*\{?[^{}]*\^", exponent):
        return True
    return any(
        int(power) * math.log10(max(int(base), 1)) > math.log10(MAX_EXPONENT)
        for base, power in _NUMERIC_POWER.findall(exponent)
    )


def _largest_integer(text: str) -> int:
    return max((int(digits) for digits in re.findall(r"\d+", text)), default=0)


def _last_group(text: str) -> str:
    """The bracketed group, the number or the character that ``text`` ends in."""
    if text and text[-1] in _OPEN:
        depth = 0
        for at in range(len(text) - 1, -1, -1):
            depth += (text[at] == text[-1]) - (text[at] == _OPEN[text[-1]])
            if not depth:
                return text[at:]
        return text
    number = re.search(r"\d+$", text)
    return number.group() if number else text[-1:]


def _first_group(text: str) -> str:
    """The bracketed group, the number or the character that ``text`` starts with."""
    closing = {opening: close for close, opening in _OPEN.items()}.get(text[:1])
    if closing is None:
        number = re.match(r"-?\d+", text)
        return number.group() if number else text[:1]
    depth = 0
    for at, character in enumerate(text):
        depth += (character == text[0]) - (character == closing)
        if not depth:
            return text[: at + 1]
    return text
