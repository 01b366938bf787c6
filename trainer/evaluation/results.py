"""Attempts at benchmark problems, kept line by line, so that an evaluation can go on where it was cut off."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.training.checkpoints import write_atomically

SETTINGS: Final = "settings.json"
ATTEMPTS: Final = "attempts.jsonl"


class AttemptsError(Exception):
    """The directory holds another evaluation or can't be read; the message says what to do."""


class Attempt(BaseModel):
    """One sample at one problem. What a server does not tell is None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    benchmark: str
    problem_id: str
    """The row's number in its file."""
    question: str
    gold: str
    sample: int
    reward: float
    """1 if the answer is right, else 0."""
    reason: str
    """Why, in the words of ``trainer.rewards.Reason``."""
    finish: Literal["stop", "length", "too_long"]
    """``length``: a limit ended it. ``too_long``: the prompt left no room for a single token."""
    tokens: int
    """Tokens that the model wrote."""
    seconds: float
    text: str
    flushes: int | None = None
    executed: int | None = None
    """Blocks that ran."""
    executed_by_model: int | None = None
    """Those of them whose flush the model requested; None in older files, where all were."""
    delayed: int | None = None
    """Delayed calls; the delay rate is their share in ``executed_by_model``."""
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
        directory: made with the first attempt: a mistake found before that binds nobody to its settings.
        settings: what decides the outcome. A directory that was begun under others is refused.

    Raises:
        AttemptsError: see above, or a line in the middle of the file is broken.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any]) -> None:
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))
        _check_settings(directory, self._settings)
        self._path = directory / ATTEMPTS
        self.attempts: dict[tuple[str, str, int], Attempt] = {a.key: a for a in self._read()}

    def add(self, attempt: Attempt) -> None:
        """Keep an attempt: on disk when this returns, but for a crash of the whole machine.

        Raises:
            AttemptsError: it can't be written; the file is as it was.
        """
        try:
            if not self.attempts:
                settings = json.dumps(self._settings, indent=2) + "\n"
                write_atomically(self._path.parent / SETTINGS, settings.encode())
            with self._path.open("ab", buffering=0) as file:
                before = file.tell()
                line = f"{attempt.model_dump_json()}\n".encode()
                if file.write(line) < len(line):  # the disk is full
                    file.truncate(before)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise AttemptsError(
                f"{self._path} can't be written ({error.strerror}): mend that, and the same command goes on"
            ) from None
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
