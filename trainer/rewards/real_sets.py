r"""Sets of real numbers as unions of intervals, from intervals, inequalities and :math:`\mathbb{R}`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from mpmath import mp

from trainer.rewards.expressions import UnreadableError, read, same_expression, variables
from trainer.rewards.structure import INEQUALITIES, Relation, bracketed, relation, split, strip_outer
from trainer.rewards.values import VALUE_ERRORS, evaluate, number

_VARIABLE: Final = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\s*\(\s*[A-Za-z]\s*\))?")
_FLIPPED: Final = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound of an interval: LaTeX, value (None if it has variables), and whether it is included."""

    text: str
    value: Any
    closed: bool


@dataclass(frozen=True, slots=True)
class RealSet:
    """A union of intervals in ascending order. ``variable`` is the variable of an inequality."""

    pieces: tuple[tuple[Bound, Bound], ...]
    variable: str | None = None


class _NotASetError(ValueError):
    pass


_MINUS: Final = Bound(r"-\infty", -mp.inf, closed=False)
_PLUS: Final = Bound(r"\infty", mp.inf, closed=False)
_ALL: Final = ((_MINUS, _PLUS),)


def real_set(text: str) -> RealSet | None:
    """Return the set of real numbers that normalised ``text`` describes, or None."""
    try:
        with mp.workdps(40):
            found = _parse(text)
            return RealSet(_merge(found.pieces), found.variable)
    except (_NotASetError, UnreadableError, *VALUE_ERRORS):
        return None


def same_sets(gold: RealSet, answer: RealSet) -> bool | None:
    """Compare two sets and the variables of their inequalities; None if bounds have variables."""
    if any(bound.value is None for piece in gold.pieces + answer.pieces for bound in piece):
        return True if _same_pieces(gold, answer) else None
    return _same_pieces(gold, answer)


def _same_pieces(gold: RealSet, answer: RealSet) -> bool:
    if gold.variable and answer.variable and gold.variable != answer.variable:
        return False
    return len(gold.pieces) == len(answer.pieces) and all(
        _same_bound(g, a)
        for pieces in zip(gold.pieces, answer.pieces, strict=True)
        for g, a in zip(*pieces, strict=True)
    )


def _same_bound(gold: Bound, answer: Bound) -> bool:
    if gold.closed != answer.closed:
        return False
    if (
        gold.value is not None
        and answer.value is not None
        and (mp.isinf(gold.value) or mp.isinf(answer.value))
    ):
        return bool(gold.value == answer.value)
    return same_expression(gold.text, answer.text)


def _parse(text: str) -> RealSet:
    text = strip_outer(text)
    if text == r"\mathbb{R}":
        return RealSet(_ALL)
    alternatives = split(text, {r"\cup", r"\or"})
    if len(alternatives) > 1:
        return _union([_parse(part) for part in alternatives])
    conditions = split(text, {",", ";", r"\and"})
    if len(conditions) > 1:
        return _conditions(text, conditions)
    common = split(text, {r"\cap"})
    if len(common) > 1:
        sets = [_parse(part) for part in common]
        return RealSet(_intersect([s.pieces for s in sets]), _variable(sets))
    without = split(text, {r"\setminus"})
    if len(without) == 2:
        whole, hole = _parse(without[0]), _parse(without[1])
        return RealSet(_intersect([whole.pieces, _complement(hole.pieces)]), whole.variable)
    found = relation(text)
    if found is not None:
        return _relation(found)
    pair = bracketed(text)
    if pair is None:
        raise _NotASetError(text)
    if pair.opening == r"\{":
        return _braces(pair.inner, pair.items)
    if len(pair.items) != 2:
        raise _NotASetError(text)
    low = _bound(pair.items[0], closed=pair.opening == "[")
    high = _bound(pair.items[1], closed=pair.closing == "]")
    if low.value is not None and high.value is not None and low.value >= high.value:
        raise _NotASetError(text)
    return RealSet(((low, high),))


def _braces(inner: str, items: tuple[str, ...]) -> RealSet:
    r"""Return the set for ``\{1, 2\}`` or ``\{x \mid x > 1\}``."""
    builder = split(inner, {r"\mid", ":", "|"})
    if len(builder) == 2:
        name = builder[0].partition(r"\in")[0].strip()
        if _VARIABLE.fullmatch(name):
            return _parse(builder[1])
    return RealSet(tuple((_bound(item, closed=True),) * 2 for item in items))


def _conditions(text: str, conditions: list[str]) -> RealSet:
    r"""Return the set for several conditions.

    ``x > 1, x < 3`` is an intersection; ``x < 1, x > 3``, whose intersection is empty, is a union;
    ``x \ne 1, 2`` excludes both.
    """
    first = relation(conditions[0])
    if first is None:
        raise _NotASetError(text)
    if first.operators == (r"\ne",):
        name = first.operands[0]
        conditions = [c if relation(c) else rf"{name} \ne {c}" for c in conditions]
    if any(relation(condition) is None for condition in conditions):
        raise _NotASetError(text)
    sets = [_parse(condition) for condition in conditions]
    variable = _variable(sets)
    both = _intersect([s.pieces for s in sets])
    return RealSet(both, variable) if both else _union(sets)


def _variable(sets: list[RealSet]) -> str | None:
    names = {s.variable for s in sets if s.variable}
    if len(names) > 1:
        raise _NotASetError("several variables")
    return next(iter(names), None)


def _union(sets: list[RealSet]) -> RealSet:
    return RealSet(tuple(piece for s in sets for piece in s.pieces), _variable(sets))


def _relation(found: Relation) -> RealSet:
    operands, operators = found.operands, found.operators
    if operators == (r"\in",) and _VARIABLE.fullmatch(operands[0]):
        inner = _parse(operands[1])
        return RealSet(inner.pieces, operands[0])
    if len(operators) == 2 and operators[1] == r"\in" and operands[2].startswith(r"\mathbb"):
        return _relation(Relation(operands[:2], operators[:1]))
    if len(operators) == 2 and set(operators) <= INEQUALITIES and _is_variable(operands[1]):
        left = _ray(operands[1], _FLIPPED[operators[0]], operands[0])
        right = _ray(operands[1], operators[1], operands[2])
        if (operators[0] in ("<", r"\le")) != (operators[1] in ("<", r"\le")):
            raise _NotASetError("not a chain")
        return RealSet(_intersect([left, right]), operands[1])
    if len(operators) != 1:
        raise _NotASetError("not an inequality")
    (left_text, right_text), operator = operands, operators[0]
    if not _is_variable(left_text) and operator in (*INEQUALITIES, r"\ne", "="):
        left_text, right_text = right_text, left_text
        operator = _FLIPPED.get(operator, operator)
    absolute = re.fullmatch(r"\|\s*([A-Za-z])\s*\|", left_text)
    if absolute and operator in INEQUALITIES:
        return _absolute(absolute[1], operator, right_text)
    if not _is_variable(left_text):
        raise _NotASetError("no variable alone on one side")
    if operator in INEQUALITIES:
        return RealSet(_ray(left_text, operator, right_text), left_text)
    point = _bound(right_text, closed=True)
    if operator == r"\ne":
        return RealSet(_complement(((point, point),)), left_text)
    if operator == "=":
        return RealSet(((point, point),), left_text)
    raise _NotASetError(operator)


def _is_variable(text: str) -> bool:
    if not _VARIABLE.fullmatch(text) or text in (r"\pi", "e", r"\infty"):
        return bool(re.fullmatch(r"\|\s*[A-Za-z]\s*\|", text))
    return len(re.sub(r"_.*|\(.*|\\", "", text)) == 1 or text.startswith("\\")


def _absolute(name: str, operator: str, text: str) -> RealSet:
    closed = operator in (r"\le", r"\ge")
    high = _bound(text, closed=closed)
    low = _bound(f"-({text})", closed=closed)
    if operator in ("<", r"\le"):
        return RealSet(((low, high),), name)
    return RealSet(((_MINUS, low), (high, _PLUS)), name)


def _ray(name: str, operator: str, text: str) -> tuple[tuple[Bound, Bound], ...]:
    bound = _bound(text, closed=operator in (r"\le", r"\ge"))
    if name in variables(read(text)):
        raise _NotASetError("the variable on both sides")
    return ((_MINUS, bound),) if operator in ("<", r"\le") else ((bound, _PLUS),)


def _bound(text: str, *, closed: bool) -> Bound:
    tree = read(text)
    if variables(tree):
        return Bound(text, None, closed)
    value = number(evaluate(tree, {}))
    if isinstance(value, mp.mpc):
        raise _NotASetError("a complex bound")
    return Bound(text, value, closed and not mp.isinf(value))


def _merge(pieces: tuple[tuple[Bound, Bound], ...]) -> tuple[tuple[Bound, Bound], ...]:
    if any(bound.value is None for piece in pieces for bound in piece):
        return pieces
    result: list[tuple[Bound, Bound]] = []
    for low, high in sorted(pieces, key=lambda p: (p[0].value, not p[0].closed, p[1].value)):
        if result:
            last_low, last_high = result[-1]
            touching = low.value < last_high.value or (
                low.value == last_high.value and (low.closed or last_high.closed)
            )
            if touching:
                result[-1] = (last_low, max(last_high, high, key=lambda b: (b.value, b.closed)))
                continue
        result.append((low, high))
    return tuple(result)


def _complement(pieces: tuple[tuple[Bound, Bound], ...]) -> tuple[tuple[Bound, Bound], ...]:
    result, start = [], _MINUS
    for low, high in _merge(pieces):
        if len(pieces) > 1 and (low.value is None or high.value is None):
            raise _NotASetError("bounds with variables")
        if low.value is None or not mp.isinf(low.value):
            result.append((start, Bound(low.text, low.value, not low.closed)))
        start = Bound(high.text, high.value, not high.closed)
    if start.value is None or start.value != mp.inf:
        result.append((start, _PLUS))
    return tuple(result)


def _intersect(sets: list[tuple[tuple[Bound, Bound], ...]]) -> tuple[tuple[Bound, Bound], ...]:
    result = sets[0]
    for other in sets[1:]:
        pieces = []
        for low, high in result:
            for other_low, other_high in other:
                bottom = _tighter(low, other_low, lower=True)
                top = _tighter(high, other_high, lower=False)
                if (
                    bottom.value is not None
                    and top.value is not None
                    and (
                        bottom.value > top.value
                        or (bottom.value == top.value and not (bottom.closed and top.closed))
                    )
                ):
                    continue
                pieces.append((bottom, top))
        result = tuple(pieces)
    return result


def _tighter(a: Bound, b: Bound, *, lower: bool) -> Bound:
    for one, other in ((a, b), (b, a)):
        if other.value is not None and mp.isinf(other.value):
            return one
    if a.value is None or b.value is None:
        raise _NotASetError("bounds with variables")
    if a.value == b.value:
        return a if not a.closed else b
    return a if (a.value > b.value) == lower else b
