"""Paired comparison of two evaluations of the same benchmarks.

Only problems that both evaluations have are compared. Every figure is a difference per problem, so the
difficulty of the problems cancels out.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from rich.box import SIMPLE_HEAD
from rich.table import Table

from trainer.evaluation.report import percent
from trainer.evaluation.results import EvalResult, ResultsError, read_results
from trainer.evaluation.statistics import (
    Interval,
    PairedDifference,
    bootstrap_means,
    paired_difference,
    percentile_interval,
)
from trainer.training.run_files import write_atomically

SHOWN = 10
"""Problems with the largest differences that a report lists."""


@dataclass(frozen=True, slots=True)
class ProblemPair:
    """One problem in both runs."""

    problem_id: str
    question: str
    a: float
    """Mean reward over the samples of the first run."""
    b: float


@dataclass(frozen=True, slots=True)
class BenchmarkComparison:
    """One benchmark in both runs, the second minus the first."""

    benchmark: str
    problems: int
    accuracy_a: float
    accuracy_b: float
    difference: PairedDifference
    better: int
    """Problems with a higher mean reward in the second run."""
    worse: int
    tokens: PairedDifference
    """Difference of the generated tokens per episode."""
    unpaired: int
    """Problems that only one run has; left out."""
    pairs: tuple[ProblemPair, ...]

    @property
    def largest(self) -> list[ProblemPair]:
        """The problems with the largest differences."""
        changed = [pair for pair in self.pairs if pair.a != pair.b]
        return sorted(changed, key=lambda pair: -abs(pair.b - pair.a))[:SHOWN]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two evaluations."""

    name_a: str
    name_b: str
    benchmarks: tuple[BenchmarkComparison, ...]

    @property
    def mean_difference(self) -> float:
        """Unweighted mean of the differences over benchmarks."""
        return sum(item.difference.mean for item in self.benchmarks) / len(self.benchmarks)

    @property
    def mean_interval(self) -> Interval | None:
        """95 % bootstrap interval of ``mean_difference``; None if a benchmark has a single problem."""
        if any(item.problems < 2 for item in self.benchmarks):
            return None
        means = [
            bootstrap_means([pair.b - pair.a for pair in item.pairs], seed=i)
            for i, item in enumerate(self.benchmarks)
        ]
        return percentile_interval(sum(means[1:], start=means[0]) / len(means))


def compare_runs(directory_a: Path, directory_b: Path) -> Comparison:
    """Compare the evaluations in two directories.

    Raises:
        ResultsError: a directory has no evaluation, the evaluations share no benchmark, or a row has another
            problem.
    """
    by_benchmark_a, by_benchmark_b = (_by_benchmark(read_results(d)[1]) for d in (directory_a, directory_b))
    shared = [name for name in by_benchmark_a if name in by_benchmark_b]
    if not shared:
        raise ResultsError(
            f"no benchmark in common: {directory_a} has {', '.join(by_benchmark_a) or 'none'}, {directory_b} "
            f"has {', '.join(by_benchmark_b) or 'none'}"
        )
    return Comparison(
        str(directory_a),
        str(directory_b),
        tuple(compare_benchmark(name, by_benchmark_a[name], by_benchmark_b[name]) for name in shared),
    )


def _by_benchmark(results: Sequence[EvalResult]) -> dict[str, list[EvalResult]]:
    found: defaultdict[str, list[EvalResult]] = defaultdict(list)
    for result in results:
        found[result.benchmark].append(result)
    return dict(found)


def _by_problem(results: Sequence[EvalResult]) -> dict[str, list[EvalResult]]:
    found: defaultdict[str, list[EvalResult]] = defaultdict(list)
    for result in results:
        found[result.problem_id].append(result)
    return dict(found)


def compare_benchmark(
    benchmark: str, a: Sequence[EvalResult], b: Sequence[EvalResult]
) -> BenchmarkComparison:
    """Compare two sets of results of one benchmark on the problems that both have.

    Raises:
        ResultsError: they share no problem, or a row has another problem.
    """
    problems_a, problems_b = _by_problem(a), _by_problem(b)
    shared = [name for name in problems_a if name in problems_b]
    if not shared:
        raise ResultsError(f"{benchmark}: the two evaluations have no problem in common")
    for name in shared:
        first, second = problems_a[name][0], problems_b[name][0]
        if (first.question, first.gold) != (second.question, second.gold):
            raise ResultsError(f"{benchmark}, row {name} is another problem in the second evaluation")
    pairs = tuple(
        ProblemPair(
            name,
            problems_a[name][0].question,
            _mean([result.reward for result in problems_a[name]]),
            _mean([result.reward for result in problems_b[name]]),
        )
        for name in shared
    )
    return BenchmarkComparison(
        benchmark=benchmark,
        problems=len(pairs),
        accuracy_a=_mean([pair.a for pair in pairs]),
        accuracy_b=_mean([pair.b for pair in pairs]),
        difference=paired_difference([pair.a for pair in pairs], [pair.b for pair in pairs]),
        better=sum(pair.b > pair.a for pair in pairs),
        worse=sum(pair.b < pair.a for pair in pairs),
        tokens=paired_difference(
            *(
                [_mean([r.tokens for r in problems[name]]) for name in shared]
                for problems in (problems_a, problems_b)
            )
        ),
        unpaired=len(problems_a.keys() ^ problems_b.keys()),
        pairs=pairs,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def comparison_table(comparison: Comparison) -> Table:
    """Return the table for the terminal. Fits 80 columns."""
    table = Table(title="Second minus first evaluation, in %", box=SIMPLE_HEAD, padding=0)
    table.add_column("benchmark", overflow="fold")
    for column in (
        "prob-\nlems",
        "first",
        "second",
        "differ-\nence",
        "95 %\ninterval",
        "p",
        "better/\nworse",
        "tokens",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for item in comparison.benchmarks:
        table.add_row(
            item.benchmark,
            str(item.problems),
            f"{100 * item.accuracy_a:.1f}",
            f"{100 * item.accuracy_b:.1f}",
            f"{100 * item.difference.mean:+.1f}",
            signed_interval(item.difference.interval),
            item.difference.p_text,
            f"{item.better}/{item.worse}",
            f"{item.tokens.mean:+.0f}",
        )
    if len(comparison.benchmarks) > 1:
        table.add_section()
        mean, ends = comparison.mean_difference, comparison.mean_interval
        table.add_row("mean", "", "", "", f"{100 * mean:+.1f}", signed_interval(ends))
    return table


def comparison_notes(comparison: Comparison) -> list[str]:
    """Return the notes that readers of a comparison need."""
    notes = [
        f"{item.benchmark}: {item.unpaired} problems are in one evaluation only and are left out."
        for item in comparison.benchmarks
        if item.unpaired
    ]
    if len(comparison.benchmarks) > 1:
        notes.append("p-values are per benchmark, without a correction for several benchmarks.")
    return notes


def write_comparison(directory: Path, comparison: Comparison) -> None:
    """Write ``comparison.json`` and ``comparison.html`` into ``directory``, created if necessary."""
    values: dict[str, Any] = {
        "first": comparison.name_a,
        "second": comparison.name_b,
        "mean_difference": comparison.mean_difference,
        "mean_interval": comparison.mean_interval,
        "benchmarks": [asdict(item) for item in comparison.benchmarks],
    }
    write_atomically(directory / "comparison.json", (json.dumps(values, indent=2) + "\n").encode())
    write_atomically(directory / "comparison.html", render_comparison(comparison).encode())


def render_comparison(comparison: Comparison) -> str:
    """Return the HTML page."""
    environment = Environment(loader=PackageLoader("trainer.evaluation"), autoescape=True)
    environment.filters["percent"] = percent
    environment.filters["signed"] = lambda share: f"{100 * share:+.1f} %"
    environment.filters["interval"] = signed_interval
    return environment.get_template("comparison.html.jinja").render(
        comparison=comparison, notes=comparison_notes(comparison)
    )


def signed_interval(ends: Interval | None) -> str:
    """Format an interval of differences in percent."""
    return "-" if ends is None else f"{100 * ends[0]:+.1f} {100 * ends[1]:+.1f}"
