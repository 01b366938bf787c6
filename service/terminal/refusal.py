"""How every command complains, and how it ends when it can't do what it is asked."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape


def refuse(*complaints: str) -> NoReturn:
    """A line for each complaint on stderr, and exit code 2.

    Complaints are taken as they are: ``[train]`` in one is no markup of rich's.

    Raises:
        typer.Exit: always.
    """
    _tell("[bold red]error[/]", complaints)
    raise typer.Exit(2)


def warn(*complaints: str) -> None:
    """Likewise, of what is odd and stops nothing."""
    _tell("[bold yellow]warning[/]", complaints)


def _tell(kind: str, complaints: tuple[str, ...]) -> None:
    console = Console(stderr=True)
    for complaint in complaints:
        console.print(f"{kind} {escape(complaint)}", highlight=False, soft_wrap=True)
