"""An evaluation from settings to report: builds what it needs, shows how far it is, cleans up.

What a person sees of an evaluation: a bar, or a line now and then where nobody watches.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

import httpx
from rich.console import Console
from transformers.utils import logging as transformers_logging

from service.deferral.policy import DeferralPolicy
from service.engines.base import Sampling
from service.engines.model_lookup import locate
from service.sandbox.base import Sandbox
from trainer.data.problems import Problem
from trainer.evaluation.backends import EpisodeSolver, ServerSolver, Solver, SolverError, check_server
from trainer.evaluation.evaluate import (
    EvalConfig,
    check_problems,
    evaluate,
    missing,
    read_benchmarks,
    scores_of,
)
from trainer.evaluation.report import remarks, score_table, write_report
from trainer.evaluation.results import Attempt, AttemptLog
from trainer.evaluation.scores import Scores
from trainer.rewards import RewardScorer
from trainer.training.episodes import RolloutSettings
from trainer.training.progress import figures_bar
from trainer.training.run_lock import exclusive
from trainer.training.setup import make_engine, make_sandbox, start_all

LINE_EVERY_S: Final = 60.0


class EvalProgress:
    """Counts attempts towards ``total``. A context manager.

    Args:
        console: where it goes.
        total: attempts that the evaluation is made of.
        before: of these, how many were made by an earlier start.
        clock: seconds.
    """

    def __init__(
        self, console: Console, *, total: int, before: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._clock = console, clock
        self._total, self._before = total, before
        self._made = self._right = 0
        self._began = self._last_line = clock()
        self._bar = figures_bar(console)
        self._task = self._bar.add_task("episodes", total=total, completed=before, figures="")

    def on_attempt(self, attempt: Attempt) -> None:
        """One more was made."""
        self._made += 1
        self._right += attempt.reward > 0
        right = f"{self._right / self._made:.1%} right"
        self._bar.update(self._task, advance=1, figures=right)
        if self._console.is_terminal or self._clock() - self._last_line < LINE_EVERY_S:
            return
        self._last_line = self._clock()
        pace = (self._last_line - self._began) / self._made
        left = timedelta(seconds=round(pace * (self._total - self._before - self._made)))
        self._line(f"{right}, {60 / pace:.0f} a minute, {left} left")

    def __enter__(self) -> Self:
        self._bar.start()
        if not self._console.is_terminal:
            self._line("starting")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def _line(self, text: str) -> None:
        done = self._before + self._made
        self._console.print(f"episodes {done:,} of {self._total:,}: {text}", highlight=False)


def run_evaluation(config: EvalConfig, console: Console, *, sandbox: Sandbox | None = None) -> list[Scores]:
    """Make what attempts are missing in ``config.out``, then write the report there.

    Args:
        config: the evaluation.
        console: where progress and the table go.
        sandbox: not started; the settings' own if not given.

    Raises:
        DataError, AttemptsError, DirectoryError, ValueError: it can't begin; the message says why.
        SolverError, EngineError, SandboxError: it could not be finished; what was made is kept.
    """
    benchmarks = read_benchmarks(config)
    with exclusive(config.out):
        return _run(config, benchmarks, console, sandbox)


def _run(
    config: EvalConfig,
    benchmarks: Mapping[str, Sequence[Problem]],
    console: Console,
    sandbox: Sandbox | None,
) -> list[Scores]:
    log = AttemptLog(config.out, config.deciding())
    check_problems(benchmarks, log)
    total = sum(len(problems) * config.samples_of(name) for name, problems in benchmarks.items())
    left = len(missing(config, benchmarks, log))
    failure: SolverError | KeyboardInterrupt | None = None
    if left:
        with EvalProgress(console, total=total, before=total - left) as progress:
            try:
                asyncio.run(_play(config, benchmarks, log, progress, sandbox))
            except (SolverError, KeyboardInterrupt) as error:
                failure = error  # what is there is still worth a report
    scores = scores_of(benchmarks, log)
    if scores:
        left = len(missing(config, benchmarks, log))
        write_report(config.out, scores, config.deciding(), left)
        console.print(score_table(scores))
        for remark in remarks(scores, left):
            console.print(remark, highlight=False, soft_wrap=True)
    if failure is not None:
        raise failure
    return scores


async def _play(
    config: EvalConfig,
    benchmarks: Mapping[str, Sequence[Problem]],
    log: AttemptLog,
    progress: EvalProgress,
    sandbox: Sandbox | None,
) -> None:
    async with AsyncExitStack() as stack:
        solver = await _solver(config, stack, sandbox)
        judge = await stack.enter_async_context(RewardScorer())
        await evaluate(config, benchmarks, solver, judge, log, progress.on_attempt)


async def _solver(config: EvalConfig, stack: AsyncExitStack, sandbox: Sandbox | None) -> Solver:
    if config.url is not None:
        key = config.api_key.get_secret_value() if config.api_key else None
        client = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=config.url,
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=httpx.Timeout(3600.0, connect=10.0),
                limits=httpx.Limits(max_connections=config.max_concurrent_episodes),
            )
        )
        request = {"temperature": config.temperature, "top_p": config.top_p}
        if config.max_tokens is not None:
            request["max_tokens"] = config.max_tokens
        await check_server(client)
        return ServerSolver(client, config.model, request, instruction=config.instruction)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model_dir = locate(config.model)
    policy = DeferralPolicy.load(model_dir)
    engine = make_engine(config, model_dir, policy, config.device)
    sandbox = sandbox or make_sandbox(config, policy)
    await start_all(stack, sandbox, engine)
    sampling = Sampling(temperature=config.temperature, top_p=config.top_p)
    settings = RolloutSettings(
        policy=policy, sampling=sampling, eager=config.eager, max_concurrent=config.max_concurrent_episodes
    )
    return EpisodeSolver(engine, sandbox, settings)
