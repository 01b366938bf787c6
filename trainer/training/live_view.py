"""The live view of a training run in a terminal: curves of the last steps, and shares with a legend."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

HISTORY: Final = 40
"""Steps that the curves show."""
BAR_WIDTH: Final = 40

CURVES: Final = (
    ("reward", "reward", "{:.3f}"),
    ("validation accuracy", "eval_accuracy", "{:.1%}"),
    ("delay rate", "delay_rate", "{:.1%}"),
    ("entropy", "entropy", "{:.3f}"),
    ("response tokens", "response_tokens", "{:,.0f}"),
    ("tokens per second", "tokens_per_second", "{:,.0f}"),
    ("seconds per rollout", "rollout_seconds", "{:,.1f}"),
    ("skipped steps", "skipped_steps", "{:.0f}"),
)
"""Label, metric and format of each curve, in the order of the view."""

# Letters as well as colours: the legend must be readable without colours.
_STYLES: Final = ("green", "red", "yellow", "blue", "magenta", "cyan", "bright_black", "white")
_GLYPHS: Final = "█▓▒░▞▚#+"
_LEVELS: Final = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float]) -> str:
    """Return one character per value, from the lowest to the highest of them. NaN is a space."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return " " * len(values)
    low, span = min(finite), max(finite) - min(finite)

    def level(value: float) -> str:
        if not math.isfinite(value):
            return " "
        return _LEVELS[round((value - low) / span * (len(_LEVELS) - 1)) if span else 0]

    return "".join(map(level, values))


def reason_shares(logs: Mapping[str, float]) -> dict[str, float]:
    """Return the shares of the first reward's reasons, the largest first. Empty if the step has none."""
    reasons: dict[str, dict[str, float]] = {}
    for name, value in logs.items():
        match name.split("/"):
            case ["rewards", reward, reason]:
                reasons.setdefault(reward, {})[reason] = value
    first = next(iter(reasons.values()), {})
    return dict(sorted(first.items(), key=lambda item: -item[1]))


def group_shares(logs: Mapping[str, float]) -> dict[str, float]:
    """Return the shares of groups that were kept and dropped, by reason."""
    prefix = "groups/"
    return {name.removeprefix(prefix): value for name, value in logs.items() if name.startswith(prefix)}


def share_bar(shares: Mapping[str, float], width: int = BAR_WIDTH) -> Text:
    """Return a stacked bar of shares between 0 and 1 and, on the next line, its legend."""
    bar, legend = Text(), Text()
    done = drawn = 0.0
    for index, (name, share) in enumerate(shares.items()):
        glyph, style = _GLYPHS[index % len(_GLYPHS)], _STYLES[index % len(_STYLES)]
        done += share
        cells = max(round(done * width) - int(drawn), 0)
        drawn += cells
        bar.append(glyph * cells, style)
        legend.append(glyph, style)
        legend.append(f" {name.replace('_', ' ')} {share:.0%}  ")
    return bar.append("\n").append_text(legend)


class LiveView:
    """The view of the last steps; call it to get the renderable of the current state."""

    def __init__(self) -> None:
        self._curves: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=HISTORY))
        self._shares: dict[str, dict[str, float]] = {}

    def add(self, logs: Mapping[str, float]) -> None:
        """Add the metrics of a step."""
        for _, metric, _ in CURVES:
            if metric in logs:
                self._curves[metric].append(float(logs[metric]))
        for title, shares in (("reasons", reason_shares(logs)), ("groups", group_shares(logs))):
            if shares:
                self._shares[title] = shares

    def __call__(self) -> RenderableType:
        curves = Table.grid(padding=(0, 2))
        curves.add_column()
        curves.add_column(justify="right")
        curves.add_column(no_wrap=True)
        for label, metric, template in CURVES:
            values = self._curves[metric]
            if values and (metric != "skipped_steps" or values[-1]):
                curves.add_row(label, template.format(values[-1]), Text(sparkline(values), style="cyan"))
        if not curves.row_count:
            return Text("waiting for the first step", style="dim")
        shares = Table.grid(padding=(0, 2))
        shares.add_column()
        shares.add_column()
        for title, values_of in self._shares.items():
            shares.add_row(title, share_bar(values_of))
        note = Text(
            f"curves: up to {HISTORY} steps, scaled from their lowest to their highest value", style="dim"
        )
        return Group(curves, shares, note)
