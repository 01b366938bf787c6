"""Problems with gold answers: loading, validation, and a resumable random order."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.data.layouts import LayoutError, ReadRow, read_row
from trainer.data.readers import DataError, read_rows
from trainer.rewards.scorer import MAX_BAD_SHARE, describe_bad_gold, gold_problem

__all__ = ["DataError", "Problem", "ProblemSet", "ProblemStream", "load_problems"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem with its gold answer. ``id`` is ``source:row``, with rows counted from 0."""

    id: str
    question: str
    answer: str
    context: tuple[Mapping[str, str], ...] = ()
    """Messages before the question: a system message, or examples."""
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """All columns of the row, as they were read."""

    @property
    def number(self) -> str:
        """The row number. Independent of the source's path."""
        return self.id.rpartition(":")[2]

    @property
    def messages(self) -> list[dict[str, object]]:
        """The conversation up to and including the question."""
        context: list[dict[str, object]] = [{**message} for message in self.context]
        return [*context, {"role": "user", "content": self.question}]

    @property
    def row(self) -> dict[str, Any]:
        """The row as reward functions see it: all columns, with ``id``, ``question`` and ``answer``."""
        return {**self.columns, "id": self.id, "question": self.question, "answer": self.answer}

    def as_read(self) -> dict[str, Any]:
        """Return a row from which the same problem is read: that of the source, with all columns, if any."""
        try:
            if self.columns and read_row(self.columns) == ReadRow(self.question, self.answer, self.context):
                return dict(self.columns)
        except LayoutError:  # columns of a generated problem
            pass
        prompt = {"messages": self.messages} if self.context else {"question": self.question}
        return {**self.columns, **prompt, "answer": self.answer}


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """Problems in the order of their source, and the numbers of skipped rows."""

    problems: tuple[Problem, ...]
    too_long: int = 0
    """Rows with a prompt over the token limit."""
    without_answer: int = 0
    """Rows with an empty gold answer, which no response could match."""
    bad_gold: int = 0
    """Rows with an invalid gold answer, such as unbalanced brackets or a long text."""


def load_problems(
    source: str | Path,
    *,
    splits: Sequence[str] = ("train",),
    check_gold: bool = True,
    count_tokens: Callable[[Problem], int] | None = None,
    max_prompt_tokens: int | None = None,
) -> ProblemSet:
    """Load problems from a file, a folder, or a data set on the Hugging Face hub.

    `trainer.data.readers.read_rows` documents the sources and `trainer.data.layouts` the columns.

    Args:
        source: a path, or a hub id such as ``org/name:config:split``.
        splits: splits to use if the source does not name one, best first.
        check_gold: skip and count gold answers that are not mathematical answers.
        count_tokens: returns the number of prompt tokens of a problem, with instruction and chat template.
        max_prompt_tokens: problems with longer prompts are skipped and counted. Needs ``count_tokens``.

    Raises:
        DataError: the source is unreadable or empty, a row is invalid, or more than 1 % of the gold answers
            cannot be graded.
        ValueError: ``max_prompt_tokens`` is below 1, or ``count_tokens`` is missing.
    """
    if max_prompt_tokens is not None and (count_tokens is None or max_prompt_tokens < 1):
        raise ValueError("max_prompt_tokens must be at least 1 and needs count_tokens")
    problems: list[Problem] = []
    too_long = without_answer = with_answer = 0
    bad: list[tuple[int, str]] = []
    for number, columns in enumerate(read_rows(source, splits=splits)):
        try:
            row = read_row(columns)
        except LayoutError as error:
            raise DataError(f"{source}, row {number}: {error}") from None
        if not row.answer:
            without_answer += 1
            continue
        with_answer += 1
        if check_gold and (reason := gold_problem(row.answer)):
            bad.append((number, reason))
            continue
        problem = Problem(f"{source}:{number}", row.question, row.answer, row.context, columns)
        if count_tokens and max_prompt_tokens and count_tokens(problem) > max_prompt_tokens:
            too_long += 1
            continue
        problems.append(problem)
    if len(bad) > MAX_BAD_SHARE * with_answer:
        raise DataError(f"{source}: {describe_bad_gold(bad, with_answer)}")
    if not problems:
        raise DataError(
            f"{source}: no usable problems: {without_answer} have no answer, {too_long} are too long"
        )
    return ProblemSet(tuple(problems), too_long, without_answer, len(bad))


class ProblemStream(Iterator[Problem]):
    """Endless iterator over problems: each once per epoch, in an order that depends only on seed and epoch.

    ``state()`` is a small JSON object; after ``restore`` the iterator continues from that position.

    Raises:
        ValueError: ``problems`` is empty.
    """

    def __init__(self, problems: Iterable[Problem], *, seed: int) -> None:
        self._problems = tuple(problems)
        if not self._problems:
            raise ValueError("problems must not be empty")
        self._seed = seed
        self._move_to(epoch=0, position=0)

    def __next__(self) -> Problem:
        if self._position == len(self._problems):
            self._move_to(epoch=self._epoch + 1, position=0)
        problem = self._problems[self._order[self._position]]
        self._position += 1
        return problem

    def take(self, count: int) -> list[Problem]:
        """Return the next ``count`` problems, across epochs if necessary."""
        return [next(self) for _ in range(count)]

    def state(self) -> dict[str, int | str]:
        """Return the current position."""
        return {
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
            "fingerprint": self.fingerprint,
        }

    def restore(self, state: Mapping[str, int | str]) -> None:
        """Continue from ``state``.

        Raises:
            ValueError: the state has other problems or another seed, so the order would differ.
        """
        if state["fingerprint"] != self.fingerprint:
            raise ValueError("the problems differ from those of the saved run: resume with the same data")
        if state["seed"] != self._seed:
            raise ValueError(f"the saved run has seed {state['seed']}, this one {self._seed}")
        self._move_to(epoch=int(state["epoch"]), position=int(state["position"]))

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return self._epoch

    @property
    def fingerprint(self) -> str:
        """Hash of questions and answers in order. Independent of the source's path."""
        digest = hashlib.sha256()
        for problem in self._problems:
            context = [dict(message) for message in problem.context]
            content = [problem.question, problem.answer, *([context] if context else [])]
            digest.update(json.dumps(content).encode())
        return digest.hexdigest()[:16]

    def _move_to(self, *, epoch: int, position: int) -> None:
        self._epoch, self._position = epoch, position
        self._order = list(range(len(self._problems)))
        # String seeds are hashed with SHA-512, so the order is the same on every platform and in every
        # process.
        random.Random(f"{self._seed}/{epoch}").shuffle(self._order)  # noqa: S311 - not for secrets
