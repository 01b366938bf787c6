"""Comparison of the curves of several runs: charts for the terminal, and a self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import plotille
from jinja2 import Environment, PackageLoader
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.runs.records import RunsError, TrainingRun, differing_fields, display_names

DEFAULT_METRICS: Final = (
    "reward", "eval_accuracy", "delay_rate", "response_tokens", "entropy", "tokens_per_second",
)  # fmt: skip
"""Metrics that are compared unless others are chosen, if a run has them."""

_COLORS: Final = ("blue", "yellow", "green", "magenta", "cyan", "red")
_MARKERS: Final = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric of one run."""

    name: str
    """The run's name."""
    points: Sequence[tuple[int, float]]
    """(step, value), in order; possibly empty."""

    @property
    def last(self) -> float | None:
        return self.points[-1][1] if self.points else None

    @property
    def tail_mean(self) -> float | None:
        """Mean of the last tenth of the values, at least one."""
        tail = [value for _, value in self.points[-max(len(self.points) // 10, 1) :]]
        return sum(tail) / len(tail) if tail else None

    @property
    def best(self) -> float | None:
        return max((value for _, value in self.points), default=None)


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Curves of several runs by metric, and the settings in which the runs differ."""

    names: Sequence[str]
    curves: dict[str, list[Curve]]
    settings: dict[str, list[Any]]


def compare(runs: Sequence[TrainingRun], metrics: Sequence[str] = ()) -> RunComparison:
    """Compare runs.

    Args:
        runs: at least one.
        metrics: names as in ``metrics.jsonl``. Default: those of `DEFAULT_METRICS` that a run has.

    Raises:
        RunsError: no run has one of the metrics, or no run has a logged step.
    """
    known = set().union(*(run.metrics() for run in runs))
    if not known:
        raise RunsError(f"{runs[0].path} has no metrics yet: wait for the first step")
    for metric in metrics:
        if metric not in known:
            close = get_close_matches(metric, known, n=1)
            meant = f" Did you mean {close[0]}?" if close else ""
            raise RunsError(f"unknown metric {metric}.{meant} hint: use one of {', '.join(sorted(known))}")
    names = display_names(runs)
    chosen = metrics or [metric for metric in DEFAULT_METRICS if metric in known]
    curves = {
        metric: [Curve(name, run.curve(metric)) for name, run in zip(names, runs, strict=True)]
        for metric in chosen
    }
    return RunComparison(names, curves, differing_fields(runs))


def print_comparison(comparison: RunComparison, console: Console) -> None:
    """Print the settings that differ, and a chart and a table per metric."""
    if comparison.settings:
        table = Table(title="Settings that differ", title_justify="left")
        table.add_column("field")
        for name in comparison.names:
            table.add_column(name, overflow="fold")
        for field, values in comparison.settings.items():
            table.add_row(field, *(_as_text(value) for value in values))
        console.print(table)
    for metric, curves in comparison.curves.items():
        console.print()
        console.print(_chart(metric, curves, console), soft_wrap=True)
        console.print(_values(curves, console))


def _chart(metric: str, curves: Sequence[Curve], console: Console) -> Text:
    """Return the chart. Without colours, the points of each run are marked by its letter."""
    figure = plotille.Figure()
    figure.width, figure.height = max(min(console.width - 24, 100), 20), 12
    figure.color_mode = "names"
    figure.with_colors = console.color_system is not None
    figure.x_label, figure.y_label = "step", metric
    figure.x_ticks_fkt = lambda low, high: f"{low:.0f}"  # noqa: ARG005
    figure.y_ticks_fkt = lambda low, high: f"{low:.4g}"  # noqa: ARG005
    drawn = [point for curve in curves for point in curve.points]
    if not drawn:
        return Text("no values")
    steps, values = [step for step, _ in drawn], [value for _, value in drawn]
    figure.set_x_limits(min(steps), max(steps) if max(steps) > min(steps) else min(steps) + 1)
    margin = (max(values) - min(values)) * 0.05 or max(abs(max(values)) * 0.05, 0.05)
    figure.set_y_limits(min(values) - margin, max(values) + margin)
    for index, curve in enumerate(curves):
        if not curve.points:
            continue
        xs, ys = zip(*curve.points, strict=True)
        figure.plot(
            xs,
            ys,
            lc=_COLORS[index % len(_COLORS)] if figure.with_colors else None,
            marker=None if figure.with_colors else _MARKERS[index % len(_MARKERS)],
        )
    return Text.from_ansi(figure.show())


def _values(curves: Sequence[Curve], console: Console) -> Table:
    table = Table.grid(padding=(0, 3))
    table.add_row("", "run", "steps", "last", "mean of last 10 %", "highest", style="dim")
    for index, curve in enumerate(curves):
        key = (
            Text("━━", style=_COLORS[index % len(_COLORS)])
            if console.color_system is not None
            else Text(_MARKERS[index % len(_MARKERS)])
        )
        numbers = (_number(value) for value in (curve.last, curve.tail_mean, curve.best))
        table.add_row(key, curve.name, str(len(curve.points)), *numbers)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _as_text(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)


WIDTH, HEIGHT = 520, 200
"""Size of a chart's inner area in SVG units."""


@dataclass(frozen=True, slots=True)
class _CurvePlot:
    """Coordinates of one metric's chart."""

    metric: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[list[tuple[float, float, int, str]]]
    """Per run: x, y, step and the value as text."""
    curves: list[Curve]


def render_html(comparison: RunComparison) -> str:
    """Return the comparison as an HTML page that loads nothing."""
    environment = Environment(loader=PackageLoader("trainer.runs"), autoescape=True)
    environment.filters["number"] = _number
    environment.filters["setting"] = _as_text
    return environment.get_template("comparison.html.jinja").render(
        names=comparison.names,
        settings=comparison.settings,
        plots=[_plot(metric, curves) for metric, curves in comparison.curves.items()],
    )


def _plot(metric: str, curves: list[Curve]) -> _CurvePlot:
    steps = [step for curve in curves for step, _ in curve.points] or [0]
    values = [value for curve in curves for _, value in curve.points] or [0.0]
    first, last = min(steps), max(max(steps), min(steps) + 1)
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or max(abs(high) * 0.05, 0.05)
    low, high = low - margin, high + margin

    def x(step: float) -> float:
        return round(WIDTH * (step - first) / (last - first), 1)

    def y(value: float) -> float:
        return round(HEIGHT * (high - value) / (high - low), 1)

    ticks = [low + (high - low) * i / 4 for i in range(5)]
    numbers = sorted({round(first + (last - first) * i / 4) for i in range(5)})
    return _CurvePlot(
        metric,
        [(x(step), str(step)) for step in numbers],
        [(y(value), _number(value)) for value in ticks],
        [[(x(step), y(value), step, _number(value)) for step, value in curve.points] for curve in curves],
        curves,
    )
