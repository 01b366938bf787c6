"""Evaluate a checkpoint or a server on benchmarks, at the paper's settings unless told otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from service.engines.base import EngineError
from trainer.data.problems import Problem
from trainer.data.sources import load_source
from trainer.evaluation.backends import Solution, Solver, SolverError
from trainer.evaluation.results import Attempt, AttemptLog, AttemptsError
from trainer.evaluation.scores import Scores, score
from trainer.rewards import Reward, RewardError
from trainer.training.episodes import sample_seed
from trainer.training.runtime_config import MachineConfig

PAPER_SAMPLES: Final = {"aime24": 32, "aime25": 32, "amc23": 32, "hmmt25": 32, "math500": 8, "olympiad": 8}
"""Samples a problem (arXiv 2605.18500, section 4)."""
OTHER_SAMPLES: Final = 8
MAX_FAILURES: Final = 10
"""Attempts that may fail for no fault of the model before an evaluation gives up."""


class EvalConfig(MachineConfig):
    """An evaluation. The defaults are the paper's."""

    benchmarks: tuple[Path, ...] = Field(min_length=1)
    """Parquet or jsonl files; a benchmark's name is its file's. Also ``quickstart-held-out:200``."""
    out: Path
    """Directory of attempts and report. An evaluation that is started again there goes on."""
    model: str
    """Directory of a checkpoint or a hub id; with ``url``, the name that the server knows the model by."""
    url: str | None = None
    """Base URL of an OpenAI-compatible server, such as ``http://127.0.0.1:8000``, with or without ``/v1``.
    Default: play here."""
    api_key: SecretStr | None = None
    """For ``url``."""
    instruction: str = ""
    """For ``url``: text before each problem. Our own server adds what a deferring model needs by itself."""
    samples: int | None = Field(default=None, ge=1)
    """Samples a problem. Default: 32 for AIME24, AIME25, AMC23 and HMMT25, 8 for the others."""
    limit: int | None = Field(default=None, ge=1)
    """Only so many problems of each benchmark."""
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=0.7, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    """For ``url``: tokens that an episode may write. Default: the server's own limit."""
    seed: int = Field(default=0, ge=0)
    """Each sample of each problem gets a seed made from it."""

    @field_validator("benchmarks")
    @classmethod
    def _names_differ(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        names = [path.stem for path in value]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two files are named {min(twice)!r}: a benchmark is known by its file's name")
        return value

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "http://unset")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{value!r} is not a base URL: give one such as http://127.0.0.1:8000")
        return value

    @model_validator(mode="after")
    def _only_with_url(self) -> Self:
        for name in ("api_key", "instruction", "max_tokens"):
            if self.url is None and getattr(self, name):
                raise ValueError(f"{name} is for a server: set url, or leave it out")
        return self

    def samples_of(self, benchmark: str) -> int:
        return self.samples or PAPER_SAMPLES.get(benchmark, OTHER_SAMPLES)

    def deciding(self) -> dict[str, Any]:
        """The settings that decide an attempt's outcome; under others an evaluation does not go on."""
        names = {"model", "url", "instruction", "temperature", "top_p", "max_tokens", "seed"}
        deciding = self.model_dump(mode="json", include=names)
        if self.url is not None:  # one server, however it is written
            deciding["url"] = self.url.rstrip("/").removesuffix("/v1") + "/v1"
        return deciding


class Judge(Protocol):
    """See ``trainer.rewards.RewardScorer``."""

    async def score(self, response_text: str, gold: str) -> Reward: ...


def read_benchmarks(config: EvalConfig) -> dict[str, list[Problem]]:
    """Problems by benchmark.

    Raises:
        DataError: a file can't be read or a row does not fit.
    """
    return {path.stem: list(load_source(path).problems[: config.limit]) for path in config.benchmarks}


def check_problems(benchmarks: Mapping[str, Sequence[Problem]], log: AttemptLog) -> None:
    """That the attempts which are there were made at these very problems.

    Raises:
        AttemptsError: a file has changed since.
    """
    for benchmark, problems in benchmarks.items():
        known = {_name(problem): (problem.question, problem.answer) for problem in problems}
        for attempt in log.attempts.values():
            same = known.get(attempt.problem_id, (attempt.question, attempt.gold))
            if attempt.benchmark == benchmark and same != (attempt.question, attempt.gold):
                raise AttemptsError(
                    f"{benchmark}, row {attempt.problem_id} is not the problem that the attempts were made "
                    f"at: use the file as it was, or another directory"
                )


async def evaluate(
    config: EvalConfig,
    benchmarks: Mapping[str, Sequence[Problem]],
    solver: Solver,
    judge: Judge,
    log: AttemptLog,
    on_attempt: Callable[[Attempt], None] = lambda attempt: None,  # noqa: ARG005
) -> None:
    """Make every attempt that ``log`` lacks, many at once, and keep each as soon as it is judged.

    Raises:
        SolverError: attempts failed for no fault of the model. The others are kept; a next call tries again.
        AttemptsError: an attempt can't be written.
    """
    slots = asyncio.Semaphore(config.max_concurrent_episodes)
    failures: list[Exception] = []

    async def attempt(benchmark: str, problem: Problem, sample: int) -> None:
        async with slots:
            if len(failures) >= MAX_FAILURES:
                return
            try:
                seed = sample_seed(config.seed, benchmark, _name(problem), sample)
                solution = await solver.solve(problem.question, seed)
                verdict = await judge.score(solution.text, problem.answer)
            except (SolverError, EngineError, RewardError) as error:
                failures.append(error)
                return
            made = _attempt(benchmark, problem, sample, solution, verdict)
            log.add(made)
            on_attempt(made)

    await asyncio.gather(*(attempt(*item) for item in missing(config, benchmarks, log)))
    if failures:
        raise SolverError(
            f"{len(failures)} attempts failed, the last: {failures[-1]}. What was made is kept; once that is "
            f"mended, the same command goes on"
        )


def scores_of(benchmarks: Mapping[str, Sequence[Problem]], log: AttemptLog) -> list[Scores]:
    """One item a benchmark that has attempts, over the problems of ``benchmarks``."""
    result = []
    for benchmark, problems in benchmarks.items():
        names = {_name(problem) for problem in problems}
        attempts = [a for a in log.attempts.values() if a.benchmark == benchmark and a.problem_id in names]
        if attempts:
            result.append(score(benchmark, attempts))
    return result


def missing(
    config: EvalConfig, benchmarks: Mapping[str, Sequence[Problem]], log: AttemptLog
) -> list[tuple[str, Problem, int]]:
    """Benchmark, problem and sample of every attempt that is still to be made, in order."""
    return [
        (benchmark, problem, sample)
        for benchmark, problems in benchmarks.items()
        for sample in range(config.samples_of(benchmark))
        for problem in problems
        if (benchmark, _name(problem), sample) not in log.attempts
    ]


def _name(problem: Problem) -> str:
    """The row's number: an evaluation may go on after its files have moved."""
    return problem.id.rpartition(":")[2]


def _attempt(benchmark: str, problem: Problem, sample: int, solution: Solution, verdict: Reward) -> Attempt:
    tools = solution.tools
    used: dict[str, Any] = (
        {}
        if tools is None
        else {
            "flushes": tools.flushes,
            "executed": tools.executed,
            "executed_by_model": tools.executed_by_model,
            "delayed": tools.delayed,
            "tool_errors": tools.errors,
            "tool_seconds": tools.seconds,
            "hidden_seconds": tools.hidden_seconds,
        }
    )
    return Attempt(
        benchmark=benchmark,
        problem_id=_name(problem),
        question=problem.question,
        gold=problem.answer,
        sample=sample,
        reward=verdict.value,
        reason=verdict.reason,
        finish=solution.finish,
        tokens=solution.tokens,
        seconds=solution.seconds,
        text=solution.text,
        **used,
    )
