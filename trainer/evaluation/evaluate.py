"""Evaluation of a checkpoint or a server on benchmarks. The defaults are the paper's settings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from service.engines.base import EngineError
from trainer.data.problems import Problem
from trainer.data.sources import load_source
from trainer.evaluation.backends import BackendError, EvalBackend, Solution
from trainer.evaluation.results import EvalResult, ResultLog, ResultsError
from trainer.evaluation.scores import Scores, score
from trainer.rewards import Reward, RewardError, RewardFunction
from trainer.training.episodes import sample_seed
from trainer.training.runtime_config import RuntimeConfig

PAPER_SAMPLES: Final = {"aime24": 32, "aime25": 32, "amc23": 32, "hmmt25": 32, "math500": 8, "olympiad": 8}
"""Samples per problem (arXiv 2605.18500, section 4)."""
OTHER_SAMPLES: Final = 8
MAX_FAILURES: Final = 10
"""Number of failed episodes after which an evaluation stops. Wrong answers are not failures."""


class EvalConfig(RuntimeConfig):
    """Settings of an evaluation. The defaults are the paper's."""

    benchmarks: tuple[Path, ...] = Field(min_length=1)
    """Parquet or jsonl files; the file name is the benchmark's name. Also ``quickstart-held-out:200``."""
    out: Path
    """Output directory for results and report. Rerun to resume."""
    model: str
    """Checkpoint directory or hub id; with ``url``, the model's name on the server."""
    url: str | None = None
    """Base URL of an OpenAI-compatible server, such as ``http://127.0.0.1:8000``, with or without ``/v1``.
    Default: run the model in this process."""
    api_key: SecretStr | None = None
    """API key for ``url``."""
    instruction: str = ""
    """For ``url``: text before each problem. `ih-grpo serve` needs none: it adds its own."""
    samples: int | None = Field(default=None, ge=1)
    """Samples per problem. Default: 32 for AIME24, AIME25, AMC23 and HMMT25, 8 for others."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first problems of each benchmark, up to this number."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(default=0.7, gt=0, le=1)
    """Nucleus sampling."""
    max_tokens: int | None = Field(default=None, ge=1)
    """For ``url``: maximum tokens of an episode. Default: the server's limit."""
    seed: int = Field(default=0, ge=0)
    """Determines the seeds of all samples."""

    @field_validator("benchmarks")
    @classmethod
    def _names_differ(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        names = [path.stem for path in value]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two files are named {min(twice)!r}: file names must be unique")
        return value

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "http://unset")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{value!r} is not a base URL: use one such as http://127.0.0.1:8000")
        return value

    @model_validator(mode="after")
    def _only_with_url(self) -> Self:
        for name in ("api_key", "instruction", "max_tokens"):
            if self.url is None and getattr(self, name):
                raise ValueError(f"{name} needs url: set url, or remove {name}")
        return self

    def samples_of(self, benchmark: str) -> int:
        return self.samples or PAPER_SAMPLES.get(benchmark, OTHER_SAMPLES)

    def deciding(self) -> dict[str, Any]:
        """Return the settings that determine the results. An evaluation resumes only if they are
        unchanged."""
        names = {"model", "url", "instruction", "temperature", "top_p", "max_tokens", "seed"}
        deciding = self.model_dump(mode="json", include=names)
        if self.url is not None:  # one spelling per server
            deciding["url"] = self.url.rstrip("/").removesuffix("/v1") + "/v1"
        return deciding


def read_benchmarks(config: EvalConfig) -> dict[str, list[Problem]]:
    """Load the problems by benchmark.

    Raises:
        DataError: a file is unreadable or a row is invalid.
    """
    return {path.stem: list(load_source(path).problems[: config.limit]) for path in config.benchmarks}


def check_problems(benchmarks: Mapping[str, Sequence[Problem]], log: ResultLog) -> None:
    """Check that the existing results belong to these problems.

    Raises:
        ResultsError: a file has changed since.
    """
    for benchmark, problems in benchmarks.items():
        known = {_name(problem): (problem.question, problem.answer) for problem in problems}
        for result in log.results.values():
            expected = known.get(result.problem_id, (result.question, result.gold))
            if result.benchmark == benchmark and expected != (result.question, result.gold):
                raise ResultsError(
                    f"{benchmark}, row {result.problem_id} differs from the problem of the existing results: "
                    f"restore the file, or use another directory"
                )


async def evaluate(
    config: EvalConfig,
    benchmarks: Mapping[str, Sequence[Problem]],
    backend: EvalBackend,
    reward: RewardFunction,
    log: ResultLog,
    on_result: Callable[[EvalResult], None] = lambda result: None,  # noqa: ARG005
) -> None:
    """Run all episodes that are missing in ``log`` concurrently, and log each result once it is scored.

    Raises:
        BackendError: episodes failed for a reason other than the model. The others are logged; call again to
            retry.
        ResultsError: a result cannot be written.
    """
    slots = asyncio.Semaphore(config.max_concurrent_episodes)
    failures: list[Exception] = []

    async def run(benchmark: str, problem: Problem, sample: int) -> None:
        async with slots:
            if len(failures) >= MAX_FAILURES:
                return
            try:
                seed = sample_seed(config.seed, benchmark, _name(problem), sample)
                solution = await backend.solve(problem.question, seed)
                graded = await reward.score(solution.text, problem.answer)
            except (BackendError, EngineError, RewardError) as error:
                failures.append(error)
                return
            result = _result(benchmark, problem, sample, solution, graded)
            log.add(result)
            on_result(result)

    await asyncio.gather(*(run(*item) for item in missing(config, benchmarks, log)))
    if failures:
        raise BackendError(
            f"{len(failures)} episodes failed, the last one: {failures[-1]}. Finished results are saved: "
            f"fix the cause and rerun the same command to resume"
        )


def scores_of(benchmarks: Mapping[str, Sequence[Problem]], log: ResultLog) -> list[Scores]:
    """Return the scores of every benchmark that has results, over the problems of ``benchmarks``."""
    scores = []
    for benchmark, problems in benchmarks.items():
        names = {_name(problem) for problem in problems}
        results = [r for r in log.results.values() if r.benchmark == benchmark and r.problem_id in names]
        if results:
            scores.append(score(benchmark, results))
    return scores


def missing(
    config: EvalConfig, benchmarks: Mapping[str, Sequence[Problem]], log: ResultLog
) -> list[tuple[str, Problem, int]]:
    """Return benchmark, problem and sample of every missing result, in order."""
    return [
        (benchmark, problem, sample)
        for benchmark, problems in benchmarks.items()
        for sample in range(config.samples_of(benchmark))
        for problem in problems
        if (benchmark, _name(problem), sample) not in log.results
    ]


def _name(problem: Problem) -> str:
    """Return the row number. Independent of the path, so an evaluation can resume after files have moved."""
    return problem.id.rpartition(":")[2]


def _result(benchmark: str, problem: Problem, sample: int, solution: Solution, reward: Reward) -> EvalResult:
    tools = solution.tools
    usage: dict[str, Any] = (
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
    return EvalResult(
        benchmark=benchmark,
        problem_id=_name(problem),
        question=problem.question,
        gold=problem.answer,
        sample=sample,
        reward=reward.value,
        reason=reward.reason,
        finish=solution.finish,
        tokens=solution.tokens,
        seconds=solution.seconds,
        text=solution.text,
        **usage,
    )
