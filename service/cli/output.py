"""Mistakes in settings, in words that name the field.

How every command complains, and how it ends when it can't do what it is asked.

Text from a model or from its code, made harmless to a terminal.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Final, NoReturn

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.markup import escape


def explain(error: ValidationError, *models: type[BaseModel]) -> list[str]:
    """One line a mistake, led by the field's name. ``models``: whose fields a misspelt one may have meant."""
    known = [name for model in models for name in model.model_fields]
    lines = []
    for item in error.errors(include_url=False):
        field = ".".join(map(str, item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        given = "" if item["type"] in ("missing", "value_error") else f", got {item['input']!r}"
        if item["type"] == "missing":
            message = "is missing"
        if item["type"] == "extra_forbidden":
            meant = get_close_matches(str(item["loc"][-1]), known, n=1)
            message, given = "there is no such field" + "".join(f"; did you mean {m}?" for m in meant), ""
        lines.append(f"{field}: {message}{given}" if field else message)
    return lines


def abort(*complaints: str) -> NoReturn:
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


# An escape sequence could move the cursor, rewrite what was shown or set the clipboard.
_PICTURES: Final = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
_HARMLESS: Final = {**_PICTURES, 0x7F: "\u2421", **dict.fromkeys(range(0x80, 0xA0), "\ufffd")}


def sanitize(text: str) -> str:
    """``text`` with control characters as pictures of themselves; line feeds and tabs stay."""
    return text.translate(_HARMLESS)
