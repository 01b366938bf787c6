"""An evaluation's result as a table, as JSON and as one HTML page that needs nothing else."""

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
from trainer.training.checkpoints import write_atomically


def score_table(scores: Sequence[Scores]) -> Table:
    """For a terminal."""
    # 80 columns hold it: one space of padding, no frame, headings of two lines.
    table = Table(title="Evaluation, in %", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("benchmark", overflow="fold")
    for column in (
        "prob-\nlems",
        "avg@k\n± s.e.",
        "k",
        "pass\n@k",
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
            f"{100 * s.accuracy:.1f} ± {_hundredths(s.accuracy_error)}",
            str(s.samples),
            _hundredths(s.pass_at[s.samples]),
            _hundredths(s.delay_rate),
            "-" if s.flushes is None else f"{s.flushes:.2f}",
            f"{s.tokens:.0f}",
            _hundredths(s.tool_error_rate),
            _hundredths(s.time_hidden),
        )
    if len(scores) > 1:
        table.add_section()
        table.add_row("mean", "", f"{100 * mean_accuracy(scores):.1f}")
    return table


def mean_accuracy(scores: Sequence[Scores]) -> float:
    """Unweighted mean over benchmarks, as the paper's headline."""
    return sum(s.accuracy for s in scores) / len(scores)


def remarks(scores: Sequence[Scores], missing: int) -> list[str]:
    """What one must know to read the figures. ``missing``: attempts that were not made."""
    found = [
        f"{s.benchmark}: the prompts of {s.too_long} of {s.problems} problems leave no room for an answer; "
        f"they count as not solved."
        for s in scores
        if s.too_long
    ]
    if missing:
        found.append(f"Not finished: {missing:,} attempts are missing. The same command goes on.")
    return found


def write_report(
    directory: Path, scores: Sequence[Scores], settings: Mapping[str, Any], missing: int = 0
) -> None:
    """Write ``report.json`` and ``report.html`` into ``directory``.

    Args:
        directory: made if it is not there.
        scores: one item a benchmark.
        settings: what decided the outcome.
        missing: attempts that were not made.
    """
    values = {
        "settings": dict(settings),
        "missing_attempts": missing,
        "mean_accuracy": mean_accuracy(scores),
        "scores": [asdict(s) for s in scores],
    }
    write_atomically(directory / "report.json", (json.dumps(values, indent=2) + "\n").encode())
    write_atomically(directory / "report.html", render(scores, settings, missing).encode())


def render(scores: Sequence[Scores], settings: Mapping[str, Any], missing: int = 0) -> str:
    """The HTML page."""
    environment = Environment(loader=PackageLoader("trainer.evaluation"), autoescape=True)
    environment.filters["percent"] = percent
    environment.filters["short"] = lambda name: name if len(name) <= 14 else f"{name[:13]}…"
    return environment.get_template("report.html.jinja").render(
        scores=scores,
        settings=settings,
        remarks=remarks(scores, missing),
        mean=mean_accuracy(scores),
        plot=_plot(scores),
    )


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _hundredths(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


WIDTH, HEIGHT = 480, 220
"""Of the pass@k plot's inner area, in SVG units."""
_CEILINGS = (0.05, 0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class _Plot:
    """pass@k: k on a logarithmic axis, shares upwards, both as far as the values reach."""

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
