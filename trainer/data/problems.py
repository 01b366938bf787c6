"""Problems with gold answers: loading, validation, and a resumable random order."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from trainer.rewards.scorer import MAX_BAD_SHARE, cut_gold, describe_bad_gold, gold_problem


class DataError(Exception):
    """A source is unreadable or a row is invalid; the message names the file, row and field."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem with its gold answer. ``id`` is ``source:row``, with rows counted from 0."""

    id: str
    question: str
    answer: str


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


class _Row(BaseModel):
    """A row in verl's layout (``prompt[0].content``, ``reward_model.ground_truth``) or in a flat one."""

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True, str_strip_whitespace=True)

    question: str = Field(min_length=1, validation_alias=AliasChoices("question", "problem"))
    answer: str

    @field_validator("answer", mode="before")
    @classmethod
    def _plain_decimal(cls, answer: Any) -> Any:
        """Format floats without an exponent. NaN means a missing answer."""
        if not isinstance(answer, (float, Decimal)):
            return answer
        return "" if math.isnan(answer) else f"{Decimal(str(answer)):f}"

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, row: Any) -> Any:
        if not isinstance(row, Mapping) or "prompt" not in row:
            return row
        prompt, reward_model = row["prompt"], row.get("reward_model")
        if not isinstance(prompt, list) or not prompt or not isinstance(prompt[0], Mapping):
            raise ValueError("prompt must be a list of messages with role and content")
        if len(prompt) != 1 or prompt[0].get("role", "user") != "user":
            raise ValueError("prompt must be a single user message: the protocol adds its instruction to it")
        if not isinstance(reward_model, Mapping) or "ground_truth" not in reward_model:
            raise ValueError("reward_model.ground_truth is missing")
        return {"question": prompt[0].get("content"), "answer": reward_model["ground_truth"]}


def load_problems(
    source: str | Path,
    *,
    split: str = "train",
    count_tokens: Callable[[str], int] | None = None,
    max_prompt_tokens: int | None = None,
) -> ProblemSet:
    """Load problems from a ``.parquet`` or ``.jsonl`` file, or from a data set on the Hugging Face hub.

    Args:
        source: a path, or a hub id such as ``owner/name``.
        split: split of a hub data set; unused for files.
        count_tokens: returns the number of prompt tokens for a question, with instruction and chat template.
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
    for number, row in enumerate(_rows(source, split)):
        try:
            checked = _Row.model_validate(row)
        except ValidationError as error:
            raise DataError(f"{source}, row {number}: {_explain(error, row)}") from None
        answer = cut_gold(checked.answer)
        if not answer:
            without_answer += 1
            continue
        with_answer += 1
        if reason := gold_problem(answer):
            bad.append((number, reason))
            continue
        if count_tokens and max_prompt_tokens and count_tokens(checked.question) > max_prompt_tokens:
            too_long += 1
            continue
        problems.append(Problem(f"{source}:{number}", checked.question, answer))
    if len(bad) > MAX_BAD_SHARE * with_answer:
        raise DataError(f"{source}: {describe_bad_gold(bad, with_answer)}")
    if not problems:
        raise DataError(
            f"{source}: no usable problems: {without_answer} have no answer, {too_long} are too long"
        )
    return ProblemSet(tuple(problems), too_long, without_answer, len(bad))


def _explain(error: ValidationError, row: Any) -> str:
    if not isinstance(row, Mapping):
        return f"must be an object with question and answer, got {type(row).__name__}"
    first = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        wanted = "question (or problem)" if field == "question" else field
        return f"missing field {wanted}, found {', '.join(map(str, row)) or 'none'}: rename the field"
    if first["type"] == "string_type":
        return f"{field}: must be text or a number, got {first['input']!r}"
    return f"{field}: {first['msg']}" if field else first["msg"].removeprefix("Value error, ")


def _rows(source: str | Path, split: str) -> Iterator[Any]:
    path = Path(source)
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    if path.suffix == ".jsonl":
        return _jsonl_rows(path)
    if path.exists() or isinstance(source, Path) or source.count("/") != 1:
        raise DataError(f"{source}: must be a .parquet or .jsonl file, or a hub id such as owner/name")
    return _hub_rows(source, split)


def _parquet_rows(path: Path) -> Iterator[Any]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                yield from batch.to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise DataError(f"{path}: {error}") from error


def _jsonl_rows(path: Path) -> Iterator[Any]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(line for line in lines if line.strip()):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise DataError(f"{path}, row {number}: not JSON: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from error


def _hub_rows(name: str, split: str) -> Iterator[Any]:
    import datasets  # takes seconds to import

    try:
        yield from datasets.load_dataset(name, split=split)
    except Exception as error:  # hub, network, cache and parser have different exceptions
        raise DataError(f"{name} ({split}): {error}") from error


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
            digest.update(json.dumps([problem.question, problem.answer]).encode())
        return digest.hexdigest()[:16]

    def _move_to(self, *, epoch: int, position: int) -> None:
        self._epoch, self._position = epoch, position
        self._order = list(range(len(self._problems)))
        # String seeds are hashed with SHA-512, so the order is the same on every platform and in every
        # process.
        random.Random(f"{self._seed}/{epoch}").shuffle(self._order)  # noqa: S311 - not for secrets
