"""An evaluation from settings to report: builds what it needs, shows how far it is, cleans up."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

import httpx
from rich.console import Console
from transformers.utils import logging as transformers_logging

from service.checkpoint import locate
from service.deferral.policy import DeferralPolicy
from service.engines.base import Sampling
from service.sandbox.base import Sandbox
from trainer.attempts import AttemptLog
from trainer.data import Problem
from trainer.eval_progress import EvalProgress
from trainer.evaluate import EvalConfig, check_problems, evaluate, missing, read_benchmarks, scores_of
from trainer.exclusive import exclusive
from trainer.report import remarks, score_table, write_report
from trainer.rewards import RewardScorer
from trainer.rollout import RolloutSettings
from trainer.scores import Scores
from trainer.setup import make_engine, make_sandbox, start_all
from trainer.solvers import EpisodeSolver, ServerSolver, Solver, SolverError, check_server


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
