"""An evaluation's result as a table, as JSON and as one HTML page that needs nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from rich.box import SIMPLE_HEAD
from rich.table import Table

from trainer.checkpoint import write_atomically
from trainer.scores import Scores


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
            f"{100 * s.accuracy:.1f} ± {100 * s.accuracy_error:.1f}",
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


def write_report(directory: Path, scores: Sequence[Scores], settings: Mapping[str, Any]) -> None:
    """Write ``report.json`` and ``report.html`` into ``directory``."""
    values = {
        "settings": dict(settings),
        "mean_accuracy": mean_accuracy(scores),
        "scores": [asdict(s) for s in scores],
    }
    write_atomically(directory / "report.json", (json.dumps(values, indent=2) + "\n").encode())
    write_atomically(directory / "report.html", render(scores, settings).encode())


def render(scores: Sequence[Scores], settings: Mapping[str, Any]) -> str:
    """The HTML page."""
    environment = Environment(loader=PackageLoader("trainer"), autoescape=True)
    environment.filters["percent"] = percent
    return environment.get_template("report.html.jinja").render(
        scores=scores, settings=settings, mean=mean_accuracy(scores), curves=[_curve(s) for s in scores]
    )


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _hundredths(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


WIDTH, HEIGHT = 480, 220
"""Of the pass@k plot's inner area, in SVG units."""


def _curve(scores: Scores) -> list[tuple[float, float]]:
    """Points of pass@k: k on a logarithmic axis up to 32, shares upwards."""
    return [
        (round(WIDTH * math.log2(k) / 5, 1), round(HEIGHT * (1 - share), 1))
        for k, share in sorted(scores.pass_at.items())
    ]
