"""Decontamination of training data: problems that overlap with evaluation problems, by word n-grams.

Texts are compared as lower-case words and numbers, without punctuation. A training problem is contaminated if
it shares an n-gram of 13 words with an evaluation problem, the length that GPT-3 used (Brown et al. 2020,
arXiv 2005.14165, appendix C), or if an evaluation problem of fewer words is part of it.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

NGRAM: Final = 13
"""Words of an n-gram."""
MIN_WORDS: Final = 5
"""Evaluation problems with fewer words are not compared: they would match by chance."""
_WORD: Final = re.compile(r"[^\W_]+")


class HasQuestion(Protocol):
    """A problem."""

    @property
    def id(self) -> str: ...

    @property
    def question(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Overlap:
    """A training problem that overlaps with an evaluation problem, the one with the largest share."""

    problem_id: str
    benchmark: str
    benchmark_id: str
    share: float
    """Share of the evaluation problem's words that are in shared n-grams. Near 1 it is the same problem; a
    small share is often a common phrase, such as "where m and n are relatively prime positive integers"."""
    words: str
    """The first shared n-gram."""


@dataclass(frozen=True, slots=True)
class Report:
    """The overlaps of a training set, one per contaminated problem."""

    problems: int
    """Problems that were compared."""
    ngram: int
    overlaps: tuple[Overlap, ...]
    min_share: float = 0.0

    @property
    def contaminated(self) -> frozenset[str]:
        """Ids of the contaminated problems: those with an overlap of at least ``min_share``."""
        return frozenset(o.problem_id for o in self.overlaps if o.share >= self.min_share)

    @property
    def by_benchmark(self) -> Mapping[str, int]:
        """Contaminated problems by benchmark, most first."""
        return dict(Counter(o.benchmark for o in self.overlaps if o.share >= self.min_share).most_common())

    def to_json(self) -> str:
        """Return all overlaps, largest share first."""
        overlaps = sorted(self.overlaps, key=lambda overlap: (-overlap.share, overlap.problem_id))
        values = {
            "problems": self.problems,
            "contaminated": len(self.contaminated),
            "ngram": self.ngram,
            "min_share": self.min_share,
            "by_benchmark": dict(self.by_benchmark),
            "overlaps": [asdict(overlap) for overlap in overlaps],
        }
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    def __str__(self) -> str:
        count = len(self.contaminated)
        share = count / self.problems if self.problems else 0.0
        names = ", ".join(f"{count:,} with {name}" for name, count in self.by_benchmark.items())
        half = sum(o.share >= 0.5 for o in self.overlaps)
        return (
            f"{count:,} of {self.problems:,} problems ({share:.2%}) overlap with evaluation problems "
            f"({self.ngram}-grams{f'; {names}' if names else ''}); {half:,} share at least half of the words"
        )


class NgramIndex:
    """The n-grams of evaluation problems.

    Args:
        benchmarks: problems by the name of their benchmark.
        ngram: words of an n-gram.

    Raises:
        ValueError: ``ngram`` is below ``MIN_WORDS``.
    """

    def __init__(self, benchmarks: Mapping[str, Iterable[HasQuestion]], ngram: int = NGRAM) -> None:
        if ngram < MIN_WORDS:
            raise ValueError(f"ngram must be at least {MIN_WORDS}, got {ngram}")
        self.ngram = ngram
        self._sources: list[tuple[str, str, int]] = []  # benchmark, id, words
        self._places: defaultdict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)  # source, start
        for benchmark, problems in benchmarks.items():
            for problem in problems:
                found = words(problem.question)
                if len(found) < MIN_WORDS:
                    continue
                for start, gram in enumerate(_ngrams(found, min(ngram, len(found)))):
                    self._places[gram].append((len(self._sources), start))
                self._sources.append((benchmark, problem.id, len(found)))
        self._lengths = sorted({len(gram) for gram in self._places}, reverse=True)

    def find(self, problem: HasQuestion) -> Overlap | None:
        """Return the largest overlap of a training problem, or None."""
        found = words(problem.question)
        covered: defaultdict[int, set[int]] = defaultdict(set)
        first: dict[int, tuple[str, ...]] = {}
        for length in self._lengths:
            for gram in _ngrams(found, length):
                for source, start in self._places.get(gram, ()):
                    covered[source].update(range(start, start + length))
                    first.setdefault(source, gram)
        if not covered:
            return None
        source = max(covered, key=lambda index: len(covered[index]) / self._sources[index][2])
        benchmark, benchmark_id, count = self._sources[source]
        return Overlap(
            problem.id, benchmark, benchmark_id, len(covered[source]) / count, " ".join(first[source])
        )


def find_overlaps(
    problems: Sequence[HasQuestion],
    benchmarks: Mapping[str, Iterable[HasQuestion]],
    *,
    ngram: int = NGRAM,
    min_share: float = 0.0,
) -> Report:
    """Compare training problems with evaluation problems.

    Args:
        problems: the training set.
        benchmarks: evaluation problems by the name of their benchmark.
        ngram: words of an n-gram.
        min_share: see `Report.contaminated`.

    Raises:
        ValueError: ``ngram`` is below ``MIN_WORDS``.
    """
    index = NgramIndex(benchmarks, ngram)
    found = (index.find(problem) for problem in problems)
    overlaps = tuple(overlap for overlap in found if overlap is not None)
    return Report(len(problems), ngram, overlaps, min_share)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON Lines; numbers and dates of other types become text.

    Raises:
        OSError: the file is not writable.
    """
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def words(text: str) -> list[str]:
    """Return the words and numbers of a text, in lower case and Unicode's compatibility form."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _ngrams(items: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return (tuple(items[start : start + length]) for start in range(len(items) - length + 1))
