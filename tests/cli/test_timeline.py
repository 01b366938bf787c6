from __future__ import annotations

from rich.console import Console
from rich.table import Table

from service.cli.timeline import Span, timeline


def shown(table: Table) -> list[str]:
    console = Console(width=60, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_lanes_are_drawn_to_scale() -> None:
    spans = [
        Span("writes", "write", 10.0, 15.0),
        Span("runs 1", "run", 12.0, 19.9),
        Span("waits", "wait", 15.0, 20.0),
    ]
    assert shown(timeline(spans, width=10)) == [
        "writes ██████     5.00 s",
        "runs 1   ████████ 7.90 s",
        "waits       █████ 5.00 s",
        "       0  10.00 s",
    ]


def test_nothing_is_nothing_and_an_instant_is_seen() -> None:
    assert "".join(shown(timeline([]))) == ""
    assert shown(timeline([Span("runs 1", "run", 1.0, 1.0)], width=8))[0].count("█") == 1
