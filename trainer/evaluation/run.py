"""An evaluation run from settings to report: set-up, progress and clean-up."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import httpx
from rich.console import Console
from transformers.utils import logging as transformers_logging

from service.cli.output import warn
from service.deferral.policy import DeferralPolicy
from service.engines.base import Sampling
from service.engines.model_lookup import locate
from service.sandbox.base import Sandbox
from trainer.data.problems import Problem
from trainer.environments.tools import make_tools
from trainer.evaluation.backends import (
    PLAIN_INSTRUCTION,
    BackendError,
    EvalBackend,
    LocalBackend,
    ServerBackend,
    check_server,
)
from trainer.evaluation.evaluate import (
    EvalConfig,
    check_problems,
    evaluate,
    make_rewards,
    missing,
    read_benchmarks,
    scores_of,
)
from trainer.evaluation.report import report_notes, score_table, write_report
from trainer.evaluation.results import ResultLog, checkpoint_fingerprint, save_problems
from trainer.evaluation.scores import Scores
from trainer.rewards.registry import RewardSet
from trainer.training.episodes import RolloutSettings
from trainer.training.progress import EvalProgress
from trainer.training.run_files import run_lock
from trainer.training.setup import Startable, make_engine, make_sandbox, start_all


def run_evaluation(config: EvalConfig, console: Console, *, sandbox: Sandbox | None = None) -> list[Scores]:
    """Run all episodes that are missing in ``config.out``, then write the report there.

    Args:
        config: the evaluation.
        console: output for progress and the table.
        sandbox: replaces the sandbox of the settings; not started.

    Raises:
        DataError, ResultsError, DirectoryError, ValueError: the evaluation cannot start; the message gives
            the reason.
        BackendError, EngineError, SandboxError: the evaluation failed; finished results are saved.
    """
    benchmarks = read_benchmarks(config)
    with run_lock(config.out):
        return _run(config, benchmarks, console, sandbox)


def _run(
    config: EvalConfig,
    benchmarks: Mapping[str, Sequence[Problem]],
    console: Console,
    sandbox: Sandbox | None,
) -> list[Scores]:
    rewards = make_rewards(config)
    settings = config.deciding()
    if config.url is None:
        settings["weights"] = checkpoint_fingerprint(locate(config.model, base=config.base))
    log = ResultLog(config.out, settings)
    if config.temperature == 0 and (config.samples or 1) > 1:
        warn(
            f"samples is {config.samples}, but greedy samples of a problem are equal: one is run and counted"
        )
    check_problems(benchmarks, log)
    save_problems(config.out, benchmarks)
    total = sum(len(problems) * config.samples_of(name) for name, problems in benchmarks.items())
    left = len(missing(config, benchmarks, log))
    failure: BackendError | KeyboardInterrupt | None = None
    if left:
        with EvalProgress(console, total=total, before=total - left) as progress:
            try:
                asyncio.run(_run_episodes(config, benchmarks, rewards, log, progress, sandbox))
            except (BackendError, KeyboardInterrupt) as error:
                failure = error  # still report the finished results
    scores = scores_of(benchmarks, log, config.pass_at)
    if scores:
        left = len(missing(config, benchmarks, log))
        write_report(config.out, scores, settings, left)
        console.print(score_table(scores))
        for note in report_notes(scores, left):
            console.print(note, highlight=False, soft_wrap=True)
    if failure is not None:
        raise failure
    return scores


async def _run_episodes(
    config: EvalConfig,
    benchmarks: Mapping[str, Sequence[Problem]],
    rewards: Mapping[str, RewardSet],
    log: ResultLog,
    progress: EvalProgress,
    sandbox: Sandbox | None,
) -> None:
    async with AsyncExitStack() as stack:
        backend = await _backend(config, stack, sandbox)
        for reward in {id(reward): reward for reward in rewards.values()}.values():
            await stack.enter_async_context(reward)
        await evaluate(
            config,
            benchmarks,
            backend,
            rewards,
            log,
            lambda result: progress.on_result(correct=result.is_solved),
        )


async def _backend(config: EvalConfig, stack: AsyncExitStack, sandbox: Sandbox | None) -> EvalBackend:
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
        request: dict[str, Any] = {"temperature": config.temperature, "top_p": config.top_p}
        if config.thinking:
            request["chat_template_kwargs"] = {"enable_thinking": True}
        if not config.python:
            request["deferral"] = {"enabled": False}
        if config.max_tokens is not None:
            request["max_tokens"] = config.max_tokens
        await check_server(client)
        instruction = config.instruction or ("" if config.python else PLAIN_INSTRUCTION)
        return ServerBackend(client, config.model, request, instruction=instruction)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model_dir = locate(config.model, base=config.base)
    policy = DeferralPolicy.load(model_dir)
    engine = make_engine(config, model_dir, policy, config.device)
    sandbox = sandbox or make_sandbox(config, policy)
    tools = make_tools(config.tools)
    parts: list[Startable] = [engine] if tools is None else [engine, tools]
    await start_all(stack, *([sandbox] if config.python else []), *parts)
    sampling = Sampling(temperature=config.temperature, top_p=config.top_p)
    settings = RolloutSettings(
        policy=policy, sampling=sampling, eager=config.eager, max_concurrent=config.max_concurrent_episodes
    )
    return LocalBackend(
        engine, sandbox, settings, tools=tools, python=config.python, thinking=config.thinking
    )
