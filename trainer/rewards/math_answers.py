"""Whether two answers in LaTeX mean the same: by structure first, expressions by value.

An answer is taken apart into lists, sets, intervals, relations and quantities with units. Only what is left, a single
expression, goes through math-verify's parser. Runs in the reward workers, since neither time nor memory is bounded.
"""

from __future__ import annotations

import itertools
import re
from fractions import Fraction
from typing import Final, Literal

import sympy

from trainer.rewards.evaluation import Undecided, Undefined, Unsupported, evaluate
from trainer.rewards.expression_guard import TooLarge
from trainer.rewards.expressions import Unreadable, read, same_expression, same_ratio, variables
from trainer.rewards.gold_answers import cut_gold, gold_problem
from trainer.rewards.normalise import key, normalise, strip_punctuation
from trainer.rewards.real_sets import real_set, same_sets
from trainer.rewards.segments import Segments, segments
from trainer.rewards.structure import (
    INEQUALITIES,
    Relation,
    bracketed,
    elements,
    matrix_rows,
    named_list,
    relation,
    split,
    strip_outer,
)
from trainer.rewards.words import same_words, words

Verdict = Literal["correct", "incorrect", "refused", "unparsable", "bad_gold", "timeout", "error"]

_MAX_UNORDERED: Final = 40
"""Longer lists are compared in order of their text."""
_NUMBER: Final = re.compile(r"([+-]?)\s*(\d+)(?:\.(\d+))?")
_GROUPED: Final = re.compile(r"\s*\$?\d{1,3}(?:,\d{3})+\$?\s*")
_CLOCK: Final = re.compile(
    r"(\d{1,2})(?:\s*:\s*(\d{2})(?:\s*:\s*(\d{2}))?)?\s*(?:\\text\{\s*([ap])\s*\.?\s*m\s*\.?\s*\}|"
    r"([ap])\s*\.\s*m\s*\.?)?",
    re.IGNORECASE,
)
_BASED: Final = re.compile(
    r"(-?)\s*\(?\s*\{?\s*(?:\\text\{)?([0-9A-Za-z.]+)\}?\s*\}?\s*\)?\s*_\s*\{?\s*(?:\\text\{)?(\d+|[a-z]+)\s*\}?\s*\}?"
)
_BASE_NAMES: Final = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "twelve": 12, "sixteen": 16}  # fmt: skip
_CONGRUENCE: Final = re.compile(r"(?:(.*?)\\equiv)?(.+?)\\pmod\{(\w+)\}")
_TRIGONOMETRIC: Final = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)")
_MARKS_A_SET: Final = re.compile(r"[<>\]]|\\(?:le|ge|ne|cup|cap|setminus|in|infty|mathbb)(?![a-z])")


def judge(gold: str, answer: str) -> Verdict:
    """Compare two pieces of LaTeX as they stand in a box. May run for long or use much memory."""
    gold = cut_gold(gold)
    if gold_problem(gold):
        return "bad_gold"
    comparison = _Comparison()
    try:
        pairs = itertools.product(_readings(gold), _readings(answer))
        if any(comparison.same(g, a) for g, a in pairs):
            return "correct"
    except RecursionError:
        return "error"
    if comparison.too_large:
        return "refused"
    if comparison.unreadable_gold:
        return "bad_gold"
    return "unparsable" if comparison.unreadable_answer else "incorrect"


def _readings(latex: str) -> list[str]:
    """Normalised ``latex``. ``100,200`` is a number with a thousands separator, but may be meant as a list."""
    texts = [latex]
    if _GROUPED.fullmatch(latex):
        texts.append(latex.replace(",", ", "))
    return [normalise(text) for text in texts]


class _Comparison:
    """One comparison; remembers whether a side could not be read."""

    def __init__(self) -> None:
        self.unreadable_gold = False
        self.unreadable_answer = False
        self.too_large = False

    def same(self, gold: str, answer: str) -> bool:
        """Whether two normalised texts mean the same."""
        gold, answer = (
            strip_outer(re.sub(r"^\\approx(?![a-z])", "", strip_punctuation(text))) for text in (gold, answer)
        )
        if not gold or not answer:
            return False
        if key(gold) == key(answer):
            return True
        plain = _NUMBER.fullmatch(gold), _NUMBER.fullmatch(answer)
        if plain[0] and plain[1] and "." not in gold + answer:
            return _integer(plain[0]) == _integer(plain[1])
        for compare in (
            self._words,
            self._clock,
            self._based,
            self._congruence,
            self._ratio,
            self._matrix,
            self._real_sets,
            self._lists,
            self._brackets,
            self._segments,
            self._relations,
        ):
            verdict = compare(gold, answer)
            if verdict is not None:
                return verdict
        return self._quantities(gold, answer)

    def _words(self, gold: str, answer: str) -> bool | None:
        return same_words(gold, answer)

    def _clock(self, gold: str, answer: str) -> bool | None:
        times = _clock(gold), _clock(answer)
        if times[0] is None or times[1] is None:
            return False if any(time and time[1] for time in times) and ":" in gold + answer else None
        (g, g_half), (a, a_half) = times
        if g_half or a_half or "0" in (gold.partition(":")[2][:1], answer.partition(":")[2][:1]):
            return g == a and (g_half == a_half or "" in (g_half, a_half))
        return None

    def _based(self, gold: str, answer: str) -> bool | None:
        g, a = _based(gold), _based(answer)
        if g is None and a is None:
            return None
        if g and a:
            return g == a
        if g is not None:
            # The base may be left out, as a unit may be.
            return answer.upper() == g[0] and answer.replace(".", "").removeprefix("-").isalnum()
        assert a is not None  # noqa: S101 - for the type checker
        try:
            return self._expressions(gold, str(int(*a)))
        except ValueError:
            return False

    def _congruence(self, gold: str, answer: str) -> bool | None:
        g, a = _CONGRUENCE.fullmatch(gold), _CONGRUENCE.fullmatch(answer)
        if not g or not a:
            return None if not (g or a) or r"\pmod" not in gold else False
        if g[3] != a[3] or (g[1] and a[1] and key(g[1].strip()) != key(a[1].strip())):
            return False
        residues = g[2].strip(), a[2].strip()
        if g[3].isdigit() and all(_NUMBER.fullmatch(r) and "." not in r for r in residues):
            return (int(residues[0].replace(" ", "")) - int(residues[1].replace(" ", ""))) % int(g[3]) == 0
        return self.same(*residues)

    def _ratio(self, gold: str, answer: str) -> bool | None:
        g, a = split(gold, {":"}), split(answer, {":"})
        if len(g) < 2 and len(a) < 2:
            return None
        if len(g) == len(a):
            return all(
                self._expressions(f"({x})({w})", f"({y})({v})")
                for (x, y), (v, w) in itertools.pairwise(zip(g, a, strict=True))
            )
        long, short = (g, answer) if len(g) > 1 else (a, gold)
        if len(long) != 2 or not re.search(r"\\frac|/", short):
            return False
        fraction = rf"\frac{{{long[0]}}}{{{long[1]}}}"
        return self._expressions(fraction, answer) if len(g) > 1 else self._expressions(gold, fraction)

    def _matrix(self, gold: str, answer: str) -> bool | None:
        gold, answer = _right_side(gold), _right_side(answer)
        g, a = matrix_rows(gold), matrix_rows(answer)
        if g is None and a is None:
            return None
        g, a = (rows if rows is not None else _vector(text) for rows, text in ((g, gold), (a, answer)))
        if g is None or a is None:
            return None
        if "cases" in gold + answer or "aligned" in gold + answer:
            return None
        vectors = min(len(g), len(g[0])) == 1 and min(len(a), len(a[0])) == 1
        if vectors and (matrix_rows(gold) is None or matrix_rows(answer) is None):
            g, a = [sum(g, [])], [sum(a, [])]
        return [len(row) for row in g] == [len(row) for row in a] and all(
            self.same(x, y) for r, s in zip(g, a, strict=True) for x, y in zip(r, s, strict=True)
        )

    def _real_sets(self, gold: str, answer: str) -> bool | None:
        if not (_MARKS_A_SET.search(gold) or _MARKS_A_SET.search(answer)):
            return None
        g = real_set(gold)
        a = real_set(answer) if g is not None else None
        if g is None or a is None:
            return None
        pairs = bracketed(gold), bracketed(answer)
        if pairs[0] and pairs[1] and pairs[0].opening == pairs[1].opening == r"\{":
            return None
        if not _is_equation(gold) and not _is_equation(answer):
            return same_sets(g, a)
        return True if same_sets(g, a) else None

    def _lists(self, gold: str, answer: str) -> bool | None:
        gold, answer = _rows_as_list(gold), _rows_as_list(answer)
        g, a = elements(gold), elements(answer)
        if len(g) == 1 and len(a) == 1:
            return None if (g, a) == ([gold], [answer]) else self.same(g[0], a[0])
        names = named_list(g), named_list(a)
        if names[0] and names[1] and names[0][0] != names[1][0]:
            return False
        for side, named, others in ((0, names[0], a), (1, names[1], g)):
            if named and (names[1 - side] or not any(relation(part) for part in others)):
                g, a = (named[1], a) if side == 0 else (g, named[1])
        if len(g) > 1 and len(a) > 1:
            if len(g) != len(a):
                g, a = self._distinct(g, gold), self._distinct(a, answer)
            return self._unordered(g, a)
        many, one, text = (g, answer, gold) if len(g) > 1 else (a, gold, answer)
        pair = bracketed(_right_side(one))
        if pair is not None and len(pair.items) > 1:
            inner = [part for item in pair.items for part in elements(item)]
            if pair.opening == r"\{":
                many = self._distinct(many, text)
                inner = self._distinct_set(inner)
                return self._unordered(many, inner) if len(g) > 1 else self._unordered(inner, many)
            named = _named_values(many)
            many = named if named is not None else many
            return self._ordered(many, inner) if len(g) > 1 else self._ordered(inner, many)
        if any(r"\text" in part for part in many) and all(words(part) is None for part in many):
            return self._segments(gold, answer)
        if pair is not None and pair.opening == r"\{":
            distinct = self._distinct(many, text)
            return len(distinct) == 1 and self.same(
                *((distinct[0], one) if len(g) > 1 else (one, distinct[0]))
            )
        return False

    def _distinct(self, parts: list[str], text: str) -> list[str]:
        r"""Without repetitions where ``\pm`` made them: :math:`\pm 0`."""
        return self._distinct_set(parts) if r"\pm" in text else parts

    def _distinct_set(self, parts: list[str]) -> list[str]:
        result: list[str] = []
        for part in parts[: 2 * _MAX_UNORDERED]:
            if not any(self.same(part, other) for other in result):
                result.append(part)
        return result + parts[2 * _MAX_UNORDERED :]

    def _ordered(self, gold: list[str], answer: list[str]) -> bool:
        return len(gold) == len(answer) and all(map(self.same, gold, answer))

    def _unordered(self, gold: list[str], answer: list[str]) -> bool:
        if len(gold) != len(answer):
            return False
        if r"\ldots" in gold or len(gold) > _MAX_UNORDERED:
            return self._ordered(gold, answer) or sorted(map(key, gold)) == sorted(map(key, answer))
        left = list(answer)
        for part in gold:
            found = next((at for at, other in enumerate(left) if self.same(part, other)), None)
            if found is None:
                return False
            del left[found]
        return True

    def _brackets(self, gold: str, answer: str) -> bool | None:
        g, a = bracketed(_right_side(gold)), bracketed(_right_side(answer))
        if g is None and a is None:
            return None
        if g and a and (len(g.items) > 1 or len(a.items) > 1 or g.opening == a.opening == r"\{"):
            if g.opening != a.opening or g.closing != a.closing:
                return False
            g_items = [part for item in g.items for part in elements(item)]
            a_items = [part for item in a.items for part in elements(item)]
            if g.opening == r"\{":
                return self._unordered(self._distinct_set(g_items), self._distinct_set(a_items))
            return self._ordered(g_items, a_items)
        for pair, inside_gold in ((g, True), (a, False)):
            if pair is not None and pair.opening == r"\{":
                items = self._distinct_set([part for item in pair.items for part in elements(item)])
                if len(items) != 1 or items[0] == r"\emptyset":
                    return False
                return self.same(items[0], answer) if inside_gold else self.same(gold, items[0])
            if pair is not None and len(pair.items) > 1 and pair.closing in ")]":
                return False
        return None

    def _segments(self, gold: str, answer: str) -> bool | None:
        if r"\text" not in gold and r"\text" not in answer:
            return None
        g, a = segments(gold), segments(answer)
        if g is None or a is None or not g.numbers or not a.numbers:
            return None if g and a and (g.numbers or a.numbers) and not (g.words or a.words) else False
        total = _totals(g, a)
        if total is not None:
            return total
        if len(g.numbers) != len(a.numbers):
            return False
        if not g.words and not a.words:
            return None
        if len(g.numbers) > 1:
            return g.same_words(a) and self._ordered(list(g.numbers), list(a.numbers))
        if g.qualifiers != a.qualifiers or g.contradicts(a):
            return False
        if (r"\circ" in gold + answer) and (g.has_unit or a.has_unit):
            return False
        factor = g.factor(a)
        if factor is None:
            return False
        number_g, number_a = g.numbers[0], a.numbers[0]
        if factor != 1:
            return self._expressions(
                number_g, rf"({number_a})\cdot\frac{{{factor.numerator}}}{{{factor.denominator}}}"
            )
        if self.same(number_g, number_a):
            return True
        letters = [re.sub(r"\\text\{\s*([A-Za-z])\s*\}", r" \1 ", text) for text in (gold, answer)]
        if r"\text" in letters[0] + letters[1] or letters == [gold, answer]:
            return False
        return self._expressions(*letters)

    def _relations(self, gold: str, answer: str) -> bool | None:
        g, a = relation(gold), relation(answer)
        if g is None and a is None:
            return None
        if all(r is None or set(r.operators) <= {"=", r"\approx"} for r in (g, a)):
            return self._equations(gold, g, answer, a)
        if g is None or a is None:
            return False
        if len(g.operators) == len(a.operators) == 1 and {*g.operators, *a.operators} <= INEQUALITIES:
            return self._inequalities(g, a)
        return g.operators == a.operators and self._ordered(list(g.operands), list(a.operands))

    def _equations(self, gold: str, g: Relation | None, answer: str, a: Relation | None) -> bool:
        if g is not None and a is not None:
            if len(g.operands) == len(a.operands) == 2 and self._same_equation(g, a):
                return True
            if not (_is_name(g.operands[0]) and _is_name(a.operands[0])):
                return False
            names = {key(g.operands[0]), key(a.operands[0])}
            if len(names) > 1 and not (
                "y" in names and any(re.fullmatch(r"\w\(x\)", name) for name in names)
            ):
                return False
            return self._chain(g.operands[-1], g, a)
        if a is not None:
            return self._chain(gold, None, a)
        assert g is not None  # noqa: S101 - for the type checker
        if not _is_name(g.operands[0]):
            return False
        return any(self.same(value, answer) for value in _values(g))

    def _chain(self, gold: str, gold_chain: Relation | None, chain: Relation) -> bool:
        r"""Whether ``2 + 3 = 5`` or ``x = \frac{1}{3} \approx 0.33`` says ``gold``: no part may contradict."""
        golds = _values(gold_chain) if gold_chain is not None else [gold]
        values = [operand for operand in chain.operands if operand]
        first = values[0]
        if len(values) > 1 and (_is_name(first) or not self._is_number(first)):
            values = values[1:] if not any(self.same(g, first) for g in golds) or _is_name(first) else values
        if r"\approx" not in chain.operators:
            return any(all(self.same(g, value) for value in values) for g in golds)
        return any(self.same(g, v) for g in golds for v in values) and self._roughly_equal(values)

    def _is_number(self, text: str) -> bool:
        try:
            return not variables(read(re.sub(r"\\%|\^\{\\circ\}|\\text\{[^{}]*\}", "", text)))
        except (Unreadable, TooLarge):
            return False

    def _roughly_equal(self, values: list[str]) -> bool:
        try:
            numbers = [complex(_float(evaluate(read(value), {}))) for value in values]
        except (Unreadable, Undefined, Undecided, Unsupported, TooLarge, OverflowError):
            return False
        return all(abs(n - numbers[0]) <= 0.02 * abs(numbers[0]) for n in numbers)

    def _same_equation(self, gold: Relation, answer: Relation) -> bool:
        try:
            return same_ratio(*(_difference(r) for r in (gold, answer)), positive=False)
        except (Unreadable, Unsupported, TooLarge):
            return self._ordered(list(gold.operands), list(answer.operands))

    def _inequalities(self, gold: Relation, answer: Relation) -> bool:
        differences, strict = [], []
        for r in (gold, answer):
            operator = r.operators[0]
            flipped = Relation(r.operands[::-1], ("",)) if operator in (">", r"\ge") else r
            try:
                differences.append(_difference(flipped))
            except Unreadable:
                return False
            strict.append(operator in "<>")
        try:
            return strict[0] == strict[1] and same_ratio(*differences, positive=True)
        except Unsupported:
            return False

    def _quantities(self, gold: str, answer: str) -> bool:
        """Compare numbers that may have a percent or degree sign."""
        gold, answer = (
            re.sub(r"\^\{\\circ\}\s*(?:\\text\{[CFK]\}|[CF])$", r"^{\\circ}", t) for t in (gold, answer)
        )
        percents = gold.endswith(r"\%"), answer.endswith(r"\%")
        if any(percents):
            g, a = (_mixed_number(t.removesuffix(r"\%").strip()) for t in (gold, answer))
            if self._expressions(g, a):
                return percents[0] or self._above_one(a)
            if percents[0] == percents[1]:
                return False
            return (
                self._expressions(rf"\frac{{{g}}}{{100}}", a)
                if percents[0]
                else self._expressions(g, rf"\frac{{{a}}}{{100}}")
            )
        degree = r"^{\circ}"
        degrees = [degree in t and not _TRIGONOMETRIC.search(t) for t in (gold, answer)]
        if any(degrees):
            g, a = (t.replace(degree, "") if d else t for t, d in zip((gold, answer), degrees, strict=True))
            if self._expressions(g, a):
                return True
            return degrees[0] != degrees[1] and r"\pi" in gold + answer and self._expressions(gold, answer)
        return self._expressions(gold, answer)

    def _above_one(self, text: str) -> bool:
        try:
            return abs(complex(_float(evaluate(read(text), {})))) > 1
        except (Unreadable, Undefined, Undecided, Unsupported, TooLarge, OverflowError):
            return True

    def _expressions(self, gold: str, answer: str) -> bool:
        """Compare single expressions; notes which of them can't be read."""
        gold, answer = _mixed_number(gold), _mixed_number(answer)
        unreadable = []
        for text in (gold, answer):
            try:
                read(text)
                unreadable.append(False)
            except Unreadable:
                unreadable.append(True)
        self.unreadable_gold |= unreadable[0]
        self.unreadable_answer |= unreadable[1]
        try:
            return not any(unreadable) and same_expression(gold, answer)
        except TooLarge:
            self.too_large = True
            return False


def _integer(match: re.Match[str]) -> tuple[bool, str]:
    digits = match[2].lstrip("0")
    return (match[1] == "-" and bool(digits), digits)


def _float(value: object) -> complex:
    return complex(float(value)) if isinstance(value, Fraction) else complex(value)  # type: ignore[arg-type]


def _clock(text: str) -> tuple[tuple[int, int, int], str] | None:
    """Hour, minute and second of a time of day, and ``a`` or ``p``; None for what is not one."""
    match = _CLOCK.fullmatch(text)
    half = (match[4] or match[5] or "").casefold() if match else ""
    if match is None or not (match[2] or half) or int(match[1]) > 24 or int(match[2] or 0) > 59:
        return None
    return (int(match[1]), int(match[2] or 0), int(match[3] or 0)), half


def _based(text: str) -> tuple[str, int] | None:
    match = _BASED.fullmatch(text)
    if match is None:
        return None
    base = int(match[3]) if match[3].isdigit() else _BASE_NAMES.get(match[3], 0)
    digits = match[2].upper()
    if not 2 <= base <= 36 or not (
        digits.isdigit() or (base > 10 and any(d.isdigit() for d in digits)) or "text" in text
    ):
        return None
    return match[1] + digits, base


def _vector(text: str) -> list[list[str]] | None:
    pair = bracketed(text)
    if pair is None or pair.opening == r"\{" or len(pair.items) < 2:
        return None
    return [list(pair.items)]


def _rows_as_list(text: str) -> str:
    """A system of equations is the list of its rows."""
    if not re.search(r"\\begin\{(?:cases|aligned|align|array)", text):
        return text
    rows = matrix_rows(text.removeprefix(r"\{").strip())
    return ", ".join(" ".join(row) for row in rows) if rows and all(len(row) == 1 for row in rows) else text


def _right_side(text: str) -> str:
    found = relation(text)
    if found is not None and found.operators in (("=",), (r"\in",)) and _is_name(found.operands[0]):
        return found.operands[1]
    return text


def _named_values(parts: list[str]) -> list[str] | None:
    """The values of ``x=1, y=2`` in the order of the names."""
    found = [relation(part) for part in parts]
    pairs = [r.operands for r in found if r is not None and r.operators == ("=",)]
    if len(pairs) != len(parts) or not all(
        re.fullmatch(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?", name) for name, _ in pairs
    ):
        return None
    return [value for _, value in sorted(pairs)]


def _is_equation(text: str) -> bool:
    found = relation(text)
    return found is not None and "=" in found.operators


def _is_name(text: str) -> bool:
    r"""Whether ``text`` names a quantity, as ``x``, ``f(3)``, ``P(A)`` and ``\angle ABC`` do, rather than computes it."""
    pair = bracketed(text)
    if pair is not None and len(pair.items) > 1:
        return all(map(_is_name, pair.items))
    rows = matrix_rows(text)
    if rows is not None:
        return all(_is_name(cell) for row in rows for cell in row)
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


def _values(chain: Relation) -> list[str]:
    r"""The values that an assignment gives its name: the last, and those that it is approximately."""
    if r"\approx" in chain.operators:
        return [operand for operand in chain.operands[1:] if operand] or [chain.operands[0]]
    return [chain.operands[-1]]


def _difference(r: Relation) -> sympy.Basic:
    left, right = (read(_mixed_number(operand)) for operand in r.operands)
    return sympy.Add(left, sympy.Mul(-1, right, evaluate=False), evaluate=False)


def _mixed_number(text: str) -> str:
    r"""``2\frac{1}{2}`` and ``2 1/2`` as a sum. Not after ``^``, ``_`` or a letter, where it is a product."""
    simple = r"\\frac\{(\d+)\}\{(\d+)\}"
    text = re.sub(rf"(?<![\w^_.{{}}\])\\])(\d+)\s*{simple}(?!\s*[\^!])", r"{(\1+\\frac{\2}{\3})}", text)
    return re.sub(r"(?<![\w^_.{}\])\\/])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.^!])", r"{(\1+\\frac{\2}{\3})}", text)


def _totals(gold: Segments, answer: Segments) -> bool | None:
    """Whether amounts in several units, as ``3 h 20 min``, are equal; None if one has no such amount."""
    if len(gold.numbers) == 1 and len(answer.numbers) == 1:
        return None
    totals = gold.total(), answer.total()
    if totals[0] is None or totals[1] is None:
        return None
    return totals[0] == totals[1]
