"""An evaluation from settings to report: builds what it needs, shows how far it is, cleans up."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import httpx
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from service.checkpoint import locate
from service.deferral.policy import DeferralPolicy
from service.engines.base import Sampling
from service.sandbox.base import Sandbox
from trainer.attempts import Attempt, AttemptLog
from trainer.evaluate import EvalConfig, evaluate, read_benchmarks, scores_of
from trainer.report import score_table, write_report
from trainer.reward import RewardScorer
from trainer.rollout import RolloutSettings
from trainer.scores import Scores
from trainer.setup import make_engine, make_sandbox, start_all
from trainer.solvers import EpisodeSolver, ServerSolver, Solver, SolverError


def run_evaluation(config: EvalConfig, console: Console, *, sandbox: Sandbox | None = None) -> list[Scores]:
    """Make what attempts are missing in ``config.out``, then write the report there.

    Args:
        config: the evaluation.
        console: where progress and the table go.
        sandbox: not started; the settings' own if not given.

    Raises:
        DataError, AttemptsError, ValueError: it can't begin; the message says why.
        SolverError, EngineError, SandboxError: it could not be finished; what was made is kept.
    """
    benchmarks = read_benchmarks(config)
    log = AttemptLog(config.out, config.deciding())
    total = sum(len(problems) * config.samples_of(name) for name, problems in benchmarks.items())
    bar = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[right]}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("episodes", total=total, completed=len(log.attempts), right="")

        def on_attempt(attempt: Attempt) -> None:  # noqa: ARG001
            rewards = [a.reward for a in log.attempts.values()]
            bar.update(task, completed=len(rewards), right=f"{sum(rewards) / len(rewards):.1%} right")

        async def play() -> None:
            async with AsyncExitStack() as stack:
                solver = await _solver(config, stack, sandbox)
                judge = await stack.enter_async_context(RewardScorer())
                await evaluate(config, benchmarks, solver, judge, log, on_attempt)

        failure: SolverError | None = None
        try:
            asyncio.run(play())
        except SolverError as error:
            failure = error
    scores = scores_of(benchmarks, log)
    if scores:
        write_report(config.out, scores, config.deciding())
        console.print(score_table(scores))
    if failure is not None:
        raise failure
    return scores


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
        return ServerSolver(client, config.model, request, instruction=config.instruction)
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
