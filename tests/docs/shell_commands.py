"""Check that the commands, options, make targets and files in a shell block exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Final

import typer.main

from tests.docs.blocks import REPO

_TRAINER_COMMANDS: Final = {
    "train": "trainer.cli.main",
    "eval": "trainer.cli.evaluate",
    "show": "trainer.cli.show",
    "runs": "trainer.cli.runs",
}
_FOLDERS: Final = ("recipes/", "checkpoints/", "scripts/", "tests/", "benchmarks/", "deploy/")


def unknown_names(code: str) -> Iterator[str]:
    """Yield an error for each name in a shell block that does not exist."""
    for words in _commands(code):
        program, *arguments = words
        if program.rsplit("/", 1)[-1] == "ih-grpo":
            yield from _ih_grpo(arguments)
        elif program == "make":
            targets = set(re.findall(r"^([\w-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
            named = [word for word in arguments if not word.startswith("-") and "=" not in word]
            yield from (f"make has no target {word}" for word in named if word not in targets)
        for word in words:
            path = word.removeprefix("./")
            if (
                path.startswith(_FOLDERS)
                and not any(char in path for char in "*<$")
                and not (REPO / path).exists()
            ):
                yield f"there is no {path}"


def _commands(code: str) -> Iterator[list[str]]:
    for line in code.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line.removeprefix("$ "), comments=True)
        except ValueError:
            continue  # quoted text over several lines contains no commands
        command: list[str] = []
        for word in [*words, ";"]:
            if word in ("&&", "||", "|", ";", "&"):
                if command:
                    yield command
                command = []
            elif command or not re.match(r"[A-Z_]+=", word):  # VARIABLE=value before the program
                command.append(word)


def _ih_grpo(arguments: list[str]) -> Iterator[str]:
    name, *rest = arguments or [""]
    known: Any = typer.main.get_command(import_module("service.cli.main").app)
    if name.startswith("-") or not name:
        return
    if name not in known.commands:
        yield f"ih-grpo has no command {name}"
        return
    command: Any = known.commands[name]
    if name in _TRAINER_COMMANDS:
        command = typer.main.get_command(import_module(_TRAINER_COMMANDS[name]).app)
    while rest and hasattr(command, "commands") and rest[0] in command.commands:
        command = command.commands[rest.pop(0)]
    options = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    for word in rest:
        if word.startswith("--") and word.split("=")[0] not in options | {"--help"}:
            yield f"ih-grpo {name} has no option {word}"
