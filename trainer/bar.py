"""The bar of whatever takes hours: what it does, how far it is, its figures, the time gone and left."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def figures_bar(console: Console, *, elapsed_when_finished: bool = False) -> Progress:
    """A bar whose tasks have a field ``figures``; nothing is drawn where ``console`` is no terminal.

    Args:
        console: where it goes.
        elapsed_when_finished: at the end the time that it took stands where the time left was.
    """
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(elapsed_when_finished=elapsed_when_finished),
        console=console,
        disable=not console.is_terminal,
    )
