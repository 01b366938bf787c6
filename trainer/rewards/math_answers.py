"""Equivalence of two LaTeX answers: by structure first, then expressions by value.

An answer is split into lists, sets, intervals, relations and quantities with units. The remaining single
expressions are parsed with math-verify. Runs in the reward workers, because time and memory are unbounded.
"""

from __future__ import annotations

import itertools
import re
from typing import Final, Literal

from trainer.rewards.expressions import UnreadableError, read, same_expression
from trainer.rewards.normalise import key, normalise, strip_punctuation
from trainer.rewards.notation import (
    based_number,
    expand_mixed_numbers,
    named_ratio,
    named_values,
    number_word,
    right_side,
    rows_as_list,
    same_words,
    split_domain,
    time_of_day,
    vector,
    with_letters_of,
    words,
)
from trainer.rewards.real_sets import real_set, same_sets
from trainer.rewards.relations import same_relation
from trainer.rewards.scorer import cut_gold, gold_problem
from trainer.rewards.segments import Segments, segments
from trainer.rewards.structure import (
    bracketed,
    elements,
    is_equation,
    matrix_rows,
    named_list,
    relation,
    split,
    strip_outer,
)
from trainer.rewards.units import PRODUCT_WORDS
from trainer.rewards.values import VALUE_ERRORS, TooLargeError, evaluate, number

Verdict = Literal["correct", "incorrect", "refused", "unparsable", "bad_gold", "timeout", "error"]

_MAX_UNORDERED: Final = 40
"""Longer unordered lists are compared by their sorted text."""
_NUMBER: Final = re.compile(r"([+-]?)\s*(\d+)(?:\.(\d+))?")
_GROUPED: Final = re.compile(r"\s*\$?\d{1,3}(?:,\d{3})+\$?\s*")
_TIGHT: Final = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)")
_CONGRUENCE: Final = re.compile(r"(?:(.*?)\\equiv)?(.+?)\\pmod\{(\w+)\}")
_TRIGONOMETRIC: Final = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)")
_TEMPERATURE: Final = re.compile(
    r"\^\{\\circ\}\s*(?:([CFK])|\\text\{\s*(?i:([cfk])|([cfk])(?:elsius|ahrenheit|elvin))\s*\})$"
)
_MARKS_A_SET: Final = re.compile(r"[<>\]]|\\(?:le|ge|ne|cup|cap|setminus|in|infty|mathbb)(?![a-z])")


def judge(gold: str, answer: str) -> Verdict:
    """Compare the LaTeX contents of two boxes. May take long or use much memory."""
    gold = cut_gold(gold)
    if gold_problem(gold):
        return "bad_gold"
    comparison = _AnswerComparison()
    try:
        pairs = itertools.product(_readings(gold), _readings(answer))
        if any(comparison.same(g, with_letters_of(g, a)) for g, a in pairs):
            return "correct"
    except TooLargeError:
        comparison.too_large = True
    except UnreadableError:
        comparison.unreadable_answer = True
    if comparison.too_large:
        return "refused"
    if comparison.unreadable_gold:
        return "bad_gold"
    return "unparsable" if comparison.unreadable_answer else "incorrect"


def _readings(latex: str) -> list[str]:
    """Return the readings of ``latex``: ``100,200`` is both a list and a number with a separator.

    In ``2,400, 1,350`` only the commas before spaces separate numbers.
    """
    texts = [latex]
    if _GROUPED.fullmatch(latex):
        texts.append(latex.replace(",", ", "))
    elif (digits := number_word(latex)) is not None:
        texts.append(digits)
    elif re.search(r"\d,\s", latex) and re.search(r"\d,\d{3}(?!\d)", latex):
        texts.append(_TIGHT.sub(lambda match: match[0].replace(",", ""), latex))
    return [normalise(text) for text in texts]


class _AnswerComparison:
    """A comparison of two answers. Records the reason if a side has no value."""

    def __init__(self) -> None:
        self.unreadable_gold = False
        self.unreadable_answer = False
        self.too_large = False

    def same(self, gold: str, answer: str) -> bool:
        """Return True if two normalised texts are equivalent."""
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
            same_words,
            self._domain,
            self._temperature,
            self._clock,
            self._based,
            self._congruence,
            self._ratio,
            self._matrix,
            self._real_sets,
            self._lists,
            self._brackets,
            self._segments,
        ):
            verdict = compare(gold, answer)
            if verdict is not None:
                return verdict
        related = same_relation(gold, answer, self.same)
        return related if related is not None else self._quantities(gold, answer)

    def _domain(self, gold: str, answer: str) -> bool | None:
        """Compare values without the set of their parameter, which may be omitted."""
        g, a = split_domain(gold), split_domain(answer)
        if g is None and a is None:
            return None
        if g and a and g[1] != a[1]:
            return False
        return self.same(g[0] if g else gold, a[0] if a else answer)

    def _temperature(self, gold: str, answer: str) -> bool | None:
        """Compare the numbers of degrees. The scale may be omitted."""
        g, a = _TEMPERATURE.search(gold), _TEMPERATURE.search(answer)
        if g is None and a is None:
            return None
        if g and a and g[g.lastindex or 0].upper() != a[a.lastindex or 0].upper():
            return False
        if re.search(r"\\text\{\s*[Kk](?:elvins?)?\s*\}$", gold if g is None else answer):
            return False
        return self.same(*(_TEMPERATURE.sub(r"^{\\circ}", text) for text in (gold, answer)))

    def _clock(self, gold: str, answer: str) -> bool | None:
        g, a = time_of_day(gold), time_of_day(answer)
        # 5:07 is a time even without a.m. or p.m., but 5:27 may be a ratio.
        minutes = "0" in (gold.partition(":")[2][:1], answer.partition(":")[2][:1])
        if g is None or a is None:
            if not (":" in gold and ":" in answer):
                minutes = False
            known = [time for time in (g, a) if time]
            return False if known and (known[0][1] or minutes) and ":" in gold + answer else None
        halves = {g[1], a[1]}
        if halves != {""} or minutes:
            return g[0] == a[0] and (len(halves) == 1 or "" in halves)
        return None

    def _based(self, gold: str, answer: str) -> bool | None:
        g, a = based_number(gold), based_number(answer)
        if g is None and a is None:
            return None
        g, a = g or based_number(gold, letters=True), a or based_number(answer, letters=True)
        if g and a:
            return g == a
        if g is not None:
            # The base may be omitted, like a unit.
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
        (g_names, gold), (a_names, answer) = named_ratio(gold), named_ratio(answer)
        g, a = split(gold, {":"}), split(answer, {":"})
        if g_names and a_names and g_names != a_names:
            return False
        if len(g) < 2 and len(a) < 2:
            return self.same(gold, answer) if g_names or a_names else None
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
        gold, answer = right_side(gold), right_side(answer)
        gold_rows, answer_rows = matrix_rows(gold), matrix_rows(answer)
        if gold_rows is None and answer_rows is None:
            return None
        g, a = gold_rows or vector(gold), answer_rows or vector(answer)
        if g is None or a is None:
            return None
        if "cases" in gold + answer or "align" in gold + answer:
            return None
        vectors = min(len(g), len(g[0])) == 1 and min(len(a), len(a[0])) == 1
        if vectors and (gold_rows is None or answer_rows is None):
            g, a = [[cell for row in g for cell in row]], [[cell for row in a for cell in row]]
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
        if not is_equation(gold) and not is_equation(answer):
            return same_sets(g, a)
        return True if same_sets(g, a) else None

    def _lists(self, gold: str, answer: str) -> bool | None:
        gold, answer = rows_as_list(gold), rows_as_list(answer)
        g, a = elements(gold), elements(answer)
        if len(g) == 1 and len(a) == 1:
            return None if (g, a) == ([gold], [answer]) else self.same(g[0], a[0])
        g_named, a_named = named_list(g), named_list(a)
        if g_named and a_named and g_named[0] != a_named[0]:
            return False
        if g_named and (a_named or not any(map(relation, a))):
            g = g_named[1]
        if a_named and (g_named or not any(map(relation, g))):
            a = a_named[1]
        if len(g) > 1 and len(a) > 1:
            if len(g) != len(a):
                g, a = self._distinct(g, gold), self._distinct(a, answer)
            return self._unordered(g, a)
        many, one, text = (g, answer, gold) if len(g) > 1 else (a, gold, answer)
        pair = bracketed(right_side(one))
        if pair is not None and (len(pair.items) > 1 or pair.opening == r"\{"):
            inner = [part for item in pair.items for part in elements(item)]
            if pair.opening == r"\{":
                many = self._distinct(many, text)
                inner = self._distinct_set(inner)
                return self._unordered(many, inner) if len(g) > 1 else self._unordered(inner, many)
            named = named_values(many)
            many = named if named is not None else many
            return self._ordered(many, inner) if len(g) > 1 else self._ordered(inner, many)
        if any(r"\text" in part for part in many) and all(words(part) is None for part in many):
            return self._segments(gold, answer)
        return False

    def _distinct(self, parts: list[str], text: str) -> list[str]:
        r"""Remove the repetitions that ``\pm`` creates, as in :math:`\pm 0`."""
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
        g, a = bracketed(right_side(gold)), bracketed(right_side(answer))
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
        products = "|".join(["[A-Za-z]", *(w for w in PRODUCT_WORDS if w in gold and w in answer)])
        letters = [re.sub(rf"\\text\{{\s*({products})\s*\}}", r" \1 ", text) for text in (gold, answer)]
        if r"\text" in letters[0] + letters[1] or letters == [gold, answer]:
            return False
        return self._expressions(*letters)

    def _quantities(self, gold: str, answer: str) -> bool:
        """Compare numbers with an optional percent or degree sign."""
        percents = gold.endswith(r"\%"), answer.endswith(r"\%")
        if any(percents):
            g, a = (expand_mixed_numbers(t.removesuffix(r"\%").strip()) for t in (gold, answer))
            if self._expressions(g, a):
                return percents[0] or self._percent_sign_is_optional(a)
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

    def _percent_sign_is_optional(self, text: str) -> bool:
        """Return True for 0, and for values above 1, which are not fractions."""
        try:
            size = abs(complex(number(evaluate(read(text), {}))))
            return size > 1 or size == 0
        except (UnreadableError, OverflowError, *VALUE_ERRORS):
            return True

    def _expressions(self, gold: str, answer: str) -> bool:
        """Compare single expressions, and record which of them are unparsable."""
        gold, answer = expand_mixed_numbers(gold), expand_mixed_numbers(answer)
        unreadable = []
        for text in (gold, answer):
            try:
                read(text)
                unreadable.append(False)
            except UnreadableError:
                unreadable.append(True)
        self.unreadable_gold |= unreadable[0]
        self.unreadable_answer |= unreadable[1]
        try:
            return not any(unreadable) and same_expression(gold, answer)
        except TooLargeError:
            self.too_large = True
            return False


def _integer(match: re.Match[str]) -> tuple[bool, str]:
    digits = match[2].lstrip("0")
    return (match[1] == "-" and bool(digits), digits)


def _totals(gold: Segments, answer: Segments) -> bool | None:
    """Compare amounts in several units, such as ``3 h 20 min``; None if one side has no such amount."""
    if len(gold.numbers) == 1 and len(answer.numbers) == 1:
        return None
    totals = gold.total(), answer.total()
    if totals[0] is None or totals[1] is None:
        return None
    return totals[0] == totals[1]
