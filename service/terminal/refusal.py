"""How every command ends that can't do what it is asked."""

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
    console = Console(stderr=True)
    for complaint in complaints:
        console.print(f"[bold red]error[/] {escape(complaint)}", highlight=False, soft_wrap=True)
    raise typer.Exit(2)
