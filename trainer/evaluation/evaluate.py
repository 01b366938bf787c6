"""Evaluation of a checkpoint or a server on benchmarks. The defaults are the paper's settings."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from service.engines.base import EngineError
from trainer.data.problems import Problem
from trainer.data.sources import load_source
from trainer.data.suites import EVAL_SPLITS, Benchmark, parse_benchmark, suite
from trainer.environments.settings import ToolSettings
from trainer.evaluation.backends import BackendError, EvalBackend, Solution
from trainer.evaluation.results import EvalResult, ResultLog, ResultsError
from trainer.evaluation.scores import Scores, score
from trainer.rewards import Reward, RewardError
from trainer.rewards.registry import RewardSet, RewardSpec
from trainer.training.episodes import sample_seed
from trainer.training.runtime_config import RuntimeConfig

PAPER_SAMPLES: Final = {"aime24": 32, "aime25": 32, "amc23": 32, "hmmt25": 32, "math500": 8, "olympiad": 8}
"""Samples per problem (arXiv 2605.18500, section 4)."""
OTHER_SAMPLES: Final = 8
MAX_FAILURES: Final = 10
"""Number of failed episodes after which an evaluation stops. Wrong answers are not failures."""


class EvalConfig(RuntimeConfig):
    """Settings of an evaluation. The defaults are the paper's."""

    benchmarks: tuple[str, ...] = ()
    """Parquet or JSON files, folders, hub ids such as ``org/name:config:split``, or
    ``quickstart-held-out:200``. ``name=source`` sets the benchmark's name, which is otherwise the file's or
    data set's."""
    suite: str | None = None
    """``paper``: the paper's six mathematical benchmarks. ``paper-other-domains``: LogiQA, MMLU-Pro and three
    tasks of BBH, graded by letter."""
    suite_dir: Path | None = None
    """Directory with local copies of the suite's benchmarks, such as ``aime24.parquet``. Others come from the
    hub."""
    out: Path
    """Output directory for results and report. Rerun to resume."""
    model: str
    """Checkpoint or PEFT adapter: a directory or a hub id; with ``url``, the model's name on the server."""
    base: str | None = None
    """Base model of an adapter: a directory or a hub id. Default: the one that the adapter names."""
    url: str | None = None
    """Base URL of an OpenAI-compatible server, such as ``http://127.0.0.1:8000``, with or without ``/v1``.
    Default: run the model in this process."""
    api_key: SecretStr | None = None
    """API key for ``url``."""
    instruction: str = ""
    """For ``url``: text before each problem. `ih-grpo serve` needs none: it adds its own."""
    reward: str | None = None
    """Reward that grades the responses: ``math``, ``multiple_choice``, ``exact_match``, an import path such
    as ``my_package.rewards:short`` or an entry point. Default: the suite's choice, else ``math``."""
    python: bool = True
    """Offer Python to the model. False: it answers in one turn, and no code runs."""
    tools: tuple[ToolSettings, ...] = ()
    """Tools that code can call, as in a recipe; see `ToolSettings`. Not with ``url``."""
    thinking: bool = False
    """Let the model think before it answers, if its chat template supports that."""
    samples: int | None = Field(default=None, ge=1)
    """Samples per problem. Default: 32 for AIME24, AIME25, AMC23 and HMMT25, 8 for others, 1 for the other
    domains. Always 1 at temperature 0."""
    pass_at: tuple[int, ...] = ()
    """Further k of pass@k and maj@k in the report, besides powers of two and the number of samples."""
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

    @field_validator("benchmarks", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        return tuple(map(str, value)) if isinstance(value, (list, tuple)) else value

    @field_validator("tools", mode="before")
    @classmethod
    def _tools_as_text(cls, value: Any) -> Any:
        """Accept texts: import paths, and commands or URLs of MCP servers."""
        if not isinstance(value, (list, tuple)):
            return value
        return [
            {"function" if re.fullmatch(r"[\w.]+:[\w.]+", item) else "mcp_server": item}
            if isinstance(item, str)
            else item
            for item in value
        ]

    @field_validator("suite")
    @classmethod
    def _known_suite(cls, value: str | None) -> str | None:
        if value is not None:
            suite(value)
        return value

    @field_validator("reward")
    @classmethod
    def _known_reward(cls, value: str | None) -> str | None:
        if value is not None:
            RewardSet([RewardSpec(name=value)])
        return value

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "http://unset")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{value!r} is not a base URL: use one such as http://127.0.0.1:8000")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("api_key", "instruction", "max_tokens"):
            if self.url is None and getattr(self, name):
                raise ValueError(f"{name} needs url: set url, or remove {name}")
        if self.tools and (self.url is not None or not self.python):
            raise ValueError("tools needs a model that runs here, with Python: remove tools, or url")
        if self.url is not None and self.base is not None:
            raise ValueError("base has no effect with url: remove it")
        if self.suite_dir is not None and self.suite is None:
            raise ValueError("suite_dir needs suite: set suite, or remove suite_dir")
        if not self.sets:
            raise ValueError("benchmarks: missing. hint: pass files or hub ids, or --suite paper")
        names = [benchmark.name for benchmark in self.sets]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(
                f"two benchmarks are named {min(twice)!r}: names must be unique. hint: write name=source"
            )
        for k in self.pass_at:
            smallest = min(map(self.samples_of, names))
            if not 1 <= k <= smallest:
                raise ValueError(
                    f"pass_at is {k}: it must be between 1 and the {smallest} samples per problem"
                )
        return self

    @property
    def sets(self) -> tuple[Benchmark, ...]:
        """All benchmarks: those of the suite first."""
        of_suite = () if self.suite is None else suite(self.suite, self.suite_dir)
        return (*of_suite, *map(parse_benchmark, self.benchmarks))

    def samples_of(self, benchmark: str) -> int:
        """Return the number of samples per problem of a benchmark; 1 for greedy sampling."""
        if self.temperature == 0:
            return 1
        of_suite = {item.name: item.samples for item in self.sets}.get(benchmark)
        return self.samples or of_suite or PAPER_SAMPLES.get(benchmark, OTHER_SAMPLES)

    def reward_of(self, benchmark: str) -> str:
        """Return the name of the reward that grades a benchmark."""
        return self.reward or {item.name: item.reward for item in self.sets}.get(benchmark) or "math"

    def deciding(self) -> dict[str, Any]:
        """Return the settings that determine the results. An evaluation resumes only if they are
        unchanged."""
        names = {
            "model", "url", "instruction", "temperature", "top_p", "max_tokens", "seed", "reward", "python",
            "thinking",
        }  # fmt: skip
        deciding = self.model_dump(mode="json", include=names)
        if self.tools:
            deciding["tools"] = [tool.model_dump(mode="json") for tool in self.tools]
        if self.url is None:
            deciding["engine_dtype"] = self.engine_dtype
        else:  # one spelling per server
            deciding["url"] = self.url.rstrip("/").removesuffix("/v1") + "/v1"
        return deciding


def make_rewards(config: EvalConfig) -> dict[str, RewardSet]:
    """Return the reward of each benchmark; benchmarks with the same reward share it. Enter them before use.

    Raises:
        RewardConfigError: a reward cannot be loaded.
    """
    names = {benchmark.name: config.reward_of(benchmark.name) for benchmark in config.sets}
    sets = {name: RewardSet([RewardSpec(name=name)]) for name in sorted(set(names.values()))}
    return {benchmark: sets[name] for benchmark, name in names.items()}


def read_benchmarks(config: EvalConfig) -> dict[str, list[Problem]]:
    """Load the problems by benchmark.

    Raises:
        DataError: a source is unreadable or a row is invalid.
    """
    return {
        benchmark.name: list(
            load_source(
                benchmark.source,
                splits=EVAL_SPLITS,
                check_gold=config.reward_of(benchmark.name) == "math",
            ).problems[: config.limit]
        )
        for benchmark in config.sets
    }


def check_problems(benchmarks: Mapping[str, Sequence[Problem]], log: ResultLog) -> None:
    """Check that the existing results belong to these problems.

    Raises:
        ResultsError: a file has changed since.
    """
    for benchmark, problems in benchmarks.items():
        known = {problem.number: (problem.question, problem.answer) for problem in problems}
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
    rewards: Mapping[str, RewardSet],
    log: ResultLog,
    on_result: Callable[[EvalResult], None] = lambda result: None,  # noqa: ARG005
) -> None:
    """Run all episodes that are missing in ``log`` concurrently, and log each result once it is scored.

    ``rewards`` has the entered reward of each benchmark.

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
                seed = sample_seed(config.seed, benchmark, problem.number, sample)
                solution = await backend.solve(problem.messages, seed)
            except (BackendError, EngineError) as error:
                failures.append(error)
                return
            episode = solution.finished()
            verdict = await rewards[benchmark].score(episode, problem.row)
            if verdict.value is None:
                reason = f"no reward for row {problem.number} of {benchmark}: {verdict.reason}"
                failures.append(RewardError(reason))
                return
            answer = rewards[benchmark].answer_of(episode, problem.row)
            reward = Reward(verdict.value, verdict.reason)
            result = _result(benchmark, problem, sample, solution, reward, answer)
            log.add(result)
            on_result(result)

    await asyncio.gather(*(run(*item) for item in missing(config, benchmarks, log)))
    if failures:
        raise BackendError(
            f"{len(failures)} episodes failed, the last one: {failures[-1]}. Finished results are saved: "
            f"fix the cause and rerun the same command to resume"
        )


def scores_of(
    benchmarks: Mapping[str, Sequence[Problem]], log: ResultLog, pass_at: Sequence[int] = ()
) -> list[Scores]:
    """Return the scores of every benchmark that has results, over the problems of ``benchmarks``."""
    scores = []
    for benchmark, problems in benchmarks.items():
        names = {problem.number for problem in problems}
        results = [r for r in log.results.values() if r.benchmark == benchmark and r.problem_id in names]
        if results:
            scores.append(score(benchmark, results, pass_at))
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
        if (benchmark, problem.number, sample) not in log.results
    ]


def _result(
    benchmark: str, problem: Problem, sample: int, solution: Solution, reward: Reward, answer: str | None
) -> EvalResult:
    tools = solution.tools
    usage: dict[str, Any] = (
        {}
        if tools is None
        else {
            "flushes": tools.flushes,
            "executed": tools.executed,
            "executed_by_model": tools.executed_by_model,
            "delayed": tools.delayed,
            "calls": tools.calls,
            "tool_errors": tools.errors,
            "tool_seconds": tools.seconds,
            "hidden_seconds": tools.hidden_seconds,
        }
    )
    return EvalResult(
        benchmark=benchmark,
        problem_id=problem.number,
        question=problem.question,
        gold=problem.answer,
        sample=sample,
        reward=reward.value,
        reason=reward.reason,
        answer=answer,
        finish=solution.finish,
        tokens=solution.tokens,
        seconds=solution.seconds,
        text=solution.text,
        **usage,
    )
