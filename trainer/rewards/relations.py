"""Comparison of equations, inequalities and other relations."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import sympy

from trainer.rewards.expressions import UnreadableError, decimal, read, same_ratio, variables
from trainer.rewards.normalise import key
from trainer.rewards.notation import expand_mixed_numbers, is_name
from trainer.rewards.structure import INEQUALITIES, Relation, relation
from trainer.rewards.values import VALUE_ERRORS, TooLargeError, UnsupportedError, evaluate, number

Same = Callable[[str, str], bool]


def same_relation(gold: str, answer: str, same: Same) -> bool | None:
    """Compare answers if one is a relation, else return None. ``same`` compares operands."""
    g, a = _name_first(relation(gold)), _name_first(relation(answer))
    if g is None and a is None:
        return None
    if all(r is None or set(r.operators) <= {"=", r"\approx"} for r in (g, a)):
        return _equations(gold, g, answer, a, same)
    if g is None or a is None:
        return False
    if len(g.operators) == len(a.operators) == 1 and {*g.operators, *a.operators} <= INEQUALITIES:
        return _inequalities(g, a)
    return g.operators == a.operators and _all_same(g.operands, a.operands, same)


def _name_first(found: Relation | None) -> Relation | None:
    """Return ``x = 12`` for ``12 = x``; other relations unchanged."""
    if found is None or found.operators != ("=",) or is_name(found.operands[0]):
        return found
    return Relation(found.operands[::-1], found.operators) if is_name(found.operands[1]) else found


def _equations(gold: str, g: Relation | None, answer: str, a: Relation | None, same: Same) -> bool:
    if g is not None and a is not None:
        if len(g.operands) == len(a.operands) == 2 and _same_equation(g, a, same):
            return True
        if not (is_name(g.operands[0]) and is_name(a.operands[0])):
            return False
        names = {key(g.operands[0]), key(a.operands[0])}
        if len(names) > 1 and not ("y" in names and any(re.fullmatch(r"\w\(x\)", name) for name in names)):
            return False
        return _chain(g.operands[-1], g, a, same)
    if a is not None:
        return _chain(gold, None, a, same)
    assert g is not None  # noqa: S101 - for the type checker
    if not is_name(g.operands[0]):
        return False
    return any(same(value, answer) for value in _values(g))


def _chain(gold: str, gold_chain: Relation | None, chain: Relation, same: Same) -> bool:
    r"""Return True if a chain such as ``x = \frac{1}{3} \approx 0.33`` gives ``gold`` without
    contradictions."""
    golds = _values(gold_chain) if gold_chain is not None else [gold]
    values = [operand for operand in chain.operands if operand]
    first = values[0]
    if len(values) > 1 and (is_name(first) or not _is_number(first)):
        values = values[1:] if not any(same(g, first) for g in golds) or is_name(first) else values
    if r"\approx" not in chain.operators:
        return any(all(same(g, value) for value in values) for g in golds)
    matched = [value for value in values if any(same(g, value) for g in golds)]
    return any(_all_rounded(values, value) for value in matched)


def _is_number(text: str) -> bool:
    try:
        return not variables(read(re.sub(r"\\%|\^\{\\circ\}|\\text\{[^{}]*\}", "", text)))
    except (UnreadableError, TooLargeError):
        return False


def _all_rounded(values: list[str], matched: str) -> bool:
    r"""Return True if each of ``values`` and ``matched`` is the other one, rounded or truncated.

    Two integers are not: ``203\approx 204`` contradicts itself.
    """
    try:
        wanted = number(evaluate(read(matched), {}))
        return all(_is_rounded(value, matched, wanted) for value in values if value != matched)
    except (UnreadableError, *VALUE_ERRORS):
        return False


def _is_rounded(value: str, matched: str, wanted: Any) -> bool:
    error = abs(number(evaluate(read(value), {})) - wanted)
    steps = [_last_place(text) for text in (value, matched)]
    if not error or steps == [1, 1]:
        return not error
    # Truncation is accepted for decimals. An integer stands for the values that round to it.
    return any(step is not None and error < (number(step) if step != 1 else 0.5000001) for step in steps)


def _last_place(text: str) -> Fraction | None:
    found = decimal(text)
    if found is not None:
        return found.step
    return Fraction(1) if re.fullmatch(r"[+-]?\s*\d+", text) else None


def _same_equation(gold: Relation, answer: Relation, same: Same) -> bool:
    try:
        return same_ratio(*(_difference(r) for r in (gold, answer)), positive=False)
    except (UnreadableError, UnsupportedError, TooLargeError):
        return _all_same(gold.operands, answer.operands, same)


def _inequalities(gold: Relation, answer: Relation) -> bool:
    differences, strict = [], []
    for r in (gold, answer):
        operator = r.operators[0]
        flipped = Relation(r.operands[::-1], ("",)) if operator in (">", r"\ge") else r
        try:
            differences.append(_difference(flipped))
        except UnreadableError:
            return False
        strict.append(operator in "<>")
    try:
        return strict[0] == strict[1] and same_ratio(*differences, positive=True)
    except (UnsupportedError, TooLargeError):
        return False


def _all_same(gold: Sequence[str], answer: Sequence[str], same: Same) -> bool:
    return len(gold) == len(answer) and all(map(same, gold, answer))


def _values(chain: Relation) -> list[str]:
    r"""Return the values that a chain assigns: the last one, and the ones that it approximates."""
    if r"\approx" in chain.operators:
        return [operand for operand in chain.operands[1:] if operand] or [chain.operands[0]]
    return [chain.operands[-1]]


def _difference(r: Relation) -> Any:
    left, right = (read(expand_mixed_numbers(operand)) for operand in r.operands)
    return sympy.Add(left, sympy.Mul(-1, right, evaluate=False), evaluate=False)
