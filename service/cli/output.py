"""Shared output of the commands: errors, warnings, and text that is safe to print on a terminal."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Final, NoReturn

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.markup import escape


def explain(error: ValidationError, *models: type[BaseModel]) -> list[str]:
    """Format validation errors, one line each, starting with the field's name.

    ``models`` are searched for the intended field if an unknown one was given.
    """
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
            message, given = "unknown field" + "".join(f". Did you mean {name}?" for name in meant), ""
        lines.append(f"{field}: {message}{given}" if field else message)
    return lines


def abort(*messages: str) -> NoReturn:
    """Print error messages, one line each, on stderr and exit with code 2.

    Messages are printed literally: ``[train]`` is not parsed as rich markup.

    Raises:
        typer.Exit: always.
    """
    _print("[bold red]error[/]", messages)
    raise typer.Exit(2)


def warn(*messages: str) -> None:
    """Print warnings, one line each, on stderr."""
    _print("[bold yellow]warning[/]", messages)


def _print(kind: str, messages: tuple[str, ...]) -> None:
    console = Console(stderr=True)
    for message in messages:
        console.print(f"{kind} {escape(message)}", highlight=False, soft_wrap=True)


# An escape sequence could move the cursor, overwrite earlier output or set the clipboard.
_PICTURES: Final = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
_SAFE: Final = {**_PICTURES, 0x7F: "\u2421", **dict.fromkeys(range(0x80, 0xA0), "\ufffd")}


def sanitize(text: str) -> str:
    """Replace control characters in text of a model or its code by visible symbols, except line feeds and
    tabs."""
    return text.translate(_SAFE)
