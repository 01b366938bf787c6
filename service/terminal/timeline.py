"""An episode as lanes over time: what the model wrote, what ran meanwhile, and how long it had to wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

STYLES = {"write": "cyan", "run": "green", "failed": "red", "wait": "yellow", "container": "magenta"}


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took from ``start`` to ``end``, in seconds of one clock. ``kind`` is a key of STYLES."""

    lane: str
    kind: str
    start: float
    end: float


def timeline(spans: Sequence[Span], width: int = 60) -> Table:
    """A row a lane, in order of first appearance; ``width`` columns stand for the whole episode."""
    table = Table.grid(padding=(0, 1))
    if not spans:
        return table
    began = min(span.start for span in spans)
    total = max(max(span.end for span in spans) - began, 1e-9)
    for lane in dict.fromkeys(span.lane for span in spans):
        own = [span for span in spans if span.lane == lane]
        row = Text(" " * width)
        cells = [" "] * width
        for span in own:
            first = min(int((span.start - began) / total * width), width - 1)
            last = min(int((span.end - began) / total * width), width - 1)
            for at in range(first, last + 1):
                cells[at] = "\u2588"
                row.stylize(STYLES[span.kind], at, at + 1)
        row.plain = "".join(cells)
        table.add_row(lane, row, f"{sum(span.end - span.start for span in own):.2f} s")
    table.add_row("", Text(f"0{total:>{width - 3}.2f} s", style="dim"), "")
    return table
