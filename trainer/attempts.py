"""Attempts at benchmark problems, kept line by line, so that an evaluation can go on where it was cut off."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

SETTINGS: Final = "settings.json"
ATTEMPTS: Final = "attempts.jsonl"


class AttemptsError(Exception):
    """The directory holds another evaluation or can't be read; the message says what to do."""


class Attempt(BaseModel):
    """One sample at one problem. What a server does not tell is None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    benchmark: str
    problem_id: str
    sample: int
    reward: float
    """1 if the answer is right, else 0."""
    reason: str
    """Why, in the words of ``trainer.reward``."""
    finish: Literal["stop", "length"]
    tokens: int
    """Tokens that the model wrote."""
    seconds: float
    text: str
    flushes: int | None = None
    executed: int | None = None
    """Blocks that ran."""
    delayed: int | None = None
    """Those of them that were delayed calls."""
    tool_errors: int | None = None
    """Flushes that did not end well."""
    tool_seconds: float | None = None
    hidden_seconds: float | None = None
    """The part of ``tool_seconds`` that passed while the model wrote on."""

    @property
    def key(self) -> tuple[str, str, int]:
        return self.benchmark, self.problem_id, self.sample


class AttemptLog:
    """The attempts of one evaluation in a directory.

    Args:
        directory: made if it is not there.
        settings: what decides the outcome. A directory that was begun under others is refused.

    Raises:
        AttemptsError: see above, or a line in the middle of the file is broken.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        _check_settings(directory, json.loads(json.dumps(settings)))
        self._path = directory / ATTEMPTS
        self.attempts: dict[tuple[str, str, int], Attempt] = {a.key: a for a in self._read()}

    def add(self, attempt: Attempt) -> None:
        """Keep an attempt: on disk when this returns, but for a crash of the whole machine."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(attempt.model_dump_json() + "\n")
        self.attempts[attempt.key] = attempt

    def _read(self) -> Iterator[Attempt]:
        if not self._path.exists():
            return
        raw = self._path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        if whole < len(raw):  # a killed process left half a line: without it the file is sound
            with self._path.open("r+b") as file:
                file.truncate(whole)
        for number, line in enumerate(raw[:whole].splitlines(), start=1):
            try:
                yield Attempt.model_validate_json(line)
            except ValidationError:
                raise AttemptsError(
                    f"{self._path}, line {number} is not an attempt: mend or remove it"
                ) from None


def _check_settings(directory: Path, settings: dict[str, Any]) -> None:
    path = directory / SETTINGS
    if not path.exists():
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        return
    try:
        saved: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise AttemptsError(f"{path} can't be read: use another directory") from None
    for name in sorted({*saved, *settings}):
        if saved.get(name) != settings.get(name):
            raise AttemptsError(
                f"{name} is {settings.get(name)!r}, but the evaluation in {directory} was begun with "
                f"{saved.get(name)!r}: set it back, or use another directory"
            )
