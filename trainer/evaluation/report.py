"""Reports of an evaluation: a table for the terminal, JSON, and a self-contained HTML page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from rich.box import SIMPLE_HEAD
from rich.table import Table

from trainer.evaluation.scores import Scores
from trainer.evaluation.statistics import Interval, bootstrap_means, percentile_interval
from trainer.training.run_files import write_atomically


def score_table(scores: Sequence[Scores]) -> Table:
    """Return the table for the terminal."""
    # Fits 80 columns: no padding, no frame, two-line headings.
    table = Table(title="Evaluation, in %", box=SIMPLE_HEAD, padding=0)
    table.add_column("benchmark", overflow="fold")
    for column in (
        "prob-\nlems",
        "avg@k\n± s.e.",
        "k",
        "pass\n@k",
        "maj\n@k",
        "delay\nrate",
        "flush-\nes",
        "to-\nkens",
        "tool\nerrors",
        "time\nhidden",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for s in scores:
        table.add_row(
            s.benchmark,
            str(s.problems),
            f"{100 * s.accuracy:.1f} ± {_in_percent(s.accuracy_error)}",
            str(s.samples),
            _in_percent(s.pass_at[s.samples]),
            _in_percent(s.maj_at.get(s.samples)),
            _in_percent(s.delay_rate),
            "-" if s.flushes is None else f"{s.flushes:.2f}",
            f"{s.tokens:.0f}",
            _in_percent(s.tool_error_rate),
            _in_percent(s.time_hidden),
        )
    if len(scores) > 1:
        table.add_section()
        table.add_row("mean", "", f"{100 * mean_accuracy(scores):.1f}")
    return table


def mean_interval_of(scores: Sequence[Scores]) -> Interval | None:
    """Return the 95 % bootstrap interval of `mean_accuracy`: each benchmark's problems are resampled."""
    if any(len(s.by_problem) < 2 for s in scores):
        return None
    means = [bootstrap_means(list(s.by_problem.values()), seed=i) for i, s in enumerate(scores)]
    return percentile_interval(sum(means[1:], start=means[0]) / len(means))


def mean_accuracy(scores: Sequence[Scores]) -> float:
    """Return the unweighted mean over benchmarks, as in the paper."""
    return sum(s.accuracy for s in scores) / len(scores)


def report_notes(scores: Sequence[Scores], missing: int) -> list[str]:
    """Return the notes that readers of the scores need. ``missing`` is the number of missing results."""
    notes = [
        f"{s.benchmark}: the prompts of {s.too_long} of {s.problems} problems leave no room for an answer; "
        f"these problems count as not solved."
        for s in scores
        if s.too_long
    ]
    if missing:
        notes.append(f"Not finished: {missing:,} results are missing. Rerun the same command to resume.")
    return notes


def write_report(
    directory: Path, scores: Sequence[Scores], settings: Mapping[str, Any], missing: int = 0
) -> None:
    """Write ``report.json`` and ``report.html`` into ``directory``.

    Args:
        directory: created if necessary.
        scores: one item per benchmark.
        settings: the settings that determined the results.
        missing: number of missing results.
    """
    values = {
        "settings": dict(settings),
        "missing_attempts": missing,
        "mean_accuracy": mean_accuracy(scores),
        "mean_accuracy_interval": mean_interval_of(scores),
        "scores": [asdict(s) for s in scores],
    }
    write_atomically(directory / "report.json", (json.dumps(values, indent=2) + "\n").encode())
    write_atomically(directory / "report.html", render(scores, settings, missing).encode())


def render(scores: Sequence[Scores], settings: Mapping[str, Any], missing: int = 0) -> str:
    """Return the HTML page."""
    environment = Environment(loader=PackageLoader("trainer.evaluation"), autoescape=True)
    environment.filters["percent"] = percent
    environment.filters["interval"] = interval
    environment.filters["short"] = lambda name: name if len(name) <= 14 else f"{name[:13]}…"
    return environment.get_template("report.html.jinja").render(
        scores=scores,
        settings=settings,
        notes=report_notes(scores, missing),
        mean=mean_accuracy(scores),
        mean_interval=mean_interval_of(scores),
        plot=_plot(scores),
    )


def interval(ends: Interval | None) -> str:
    """Format an interval of shares in percent."""
    return "-" if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _in_percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


WIDTH, HEIGHT = 480, 220
"""Size of the pass@k plot's inner area in SVG units."""
_CEILINGS = (0.05, 0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class _Plot:
    """Coordinates of the pass@k plot: k on a logarithmic x axis, the share of solved problems on the y
    axis."""

    x_ticks: list[tuple[float, int]]
    y_ticks: list[tuple[float, str]]
    curves: list[list[tuple[float, float]]]


def _plot(scores: Sequence[Scores]) -> _Plot:
    last = max(2, *(s.samples for s in scores))
    top = max(max(s.pass_at.values()) for s in scores)
    ceiling = next(share for share in _CEILINGS if top <= share)

    def x(k: int) -> float:
        return round(WIDTH * math.log2(k) / math.log2(last), 1)

    def y(share: float) -> float:
        return round(HEIGHT * (1 - share / ceiling), 1)

    return _Plot(
        [(x(2**i), 2**i) for i in range(last.bit_length()) if 2**i <= last],
        [(y(ceiling * i / 4), f"{25 * ceiling * i:g} %") for i in range(5)],
        [[(x(k), y(share)) for k, share in sorted(s.pass_at.items())] for s in scores],
    )
