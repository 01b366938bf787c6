"""Builds what a run needs from its settings: engine, sandbox, problems."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path

from service.deferral.policy import DeferralPolicy
from service.deferral.prompt import instruct
from service.engines.base import Engine, Tokenizer
from service.engines.settings import EngineSettings
from service.engines.transformers import TransformersEngine
from service.sandbox.base import Sandbox
from trainer.config import TrainConfig
from trainer.data import Problem, load_problems


def make_engine(
    config: TrainConfig, model_dir: Path, policy: DeferralPolicy, device: str
) -> TransformersEngine:
    """The embedded engine for ``config``, not started."""
    return TransformersEngine(
        EngineSettings(
            model=str(model_dir),
            device=device,
            dtype=config.engine_dtype,
            max_slots=config.engine_slots,
            max_context=policy.max_episode_tokens,
            threads=config.threads,
        )
    )


def make_sandbox(config: TrainConfig, policy: DeferralPolicy) -> Sandbox:
    """The sandbox for ``config``, not started.

    Raises:
        ValueError: the runner's secret can't be read.
    """
    if config.sandbox == "runner":
        from service.sandbox.client import RunnerClient, RunnerClientSettings
        from service.sandbox.runner_settings import read_token

        return RunnerClient(RunnerClientSettings(config.runner_address, read_token(config.runner_token_file)))
    from service.sandbox.docker import DockerSandbox, DockerSandboxSettings

    return DockerSandbox(
        DockerSandboxSettings(
            image=config.sandbox_image,
            # Two runs on one machine must not take each other's containers for orphans.
            instance=f"{os.uname().nodename}-train-{os.getpid()}",
            pool_size=min(2, config.max_containers),
            max_containers=config.max_containers,
            run_limit_ceiling_s=policy.run_limit_s,
        )
    )


def load_training_problems(
    sources: Iterable[str], tokenizer: Tokenizer, prompt: str, max_prompt_tokens: int
) -> tuple[list[Problem], int]:
    """All problems of ``sources``, and how many were left out for their length.

    Raises:
        DataError: a source can't be read or a row does not fit.
    """
    problems: list[Problem] = []
    too_long = 0

    def count_tokens(question: str) -> int:
        message: dict[str, object] = {"role": "user", "content": instruct(question, prompt)}
        return len(tokenizer.render_chat([message], template_kwargs={"enable_thinking": False}))

    for source in sources:
        found = load_problems(source, count_tokens=count_tokens, max_prompt_tokens=max_prompt_tokens)
        problems += found.problems
        too_long += found.too_long
    return problems, too_long


async def start_all(stack: AsyncExitStack, engine: Engine, sandbox: Sandbox) -> None:
    """Start both; ``stack`` stops them, also where the second does not start.

    Raises:
        EngineError, SandboxError: one does not start.
    """
    for part in (sandbox, engine):
        stack.push_async_callback(part.stop)
        await part.start()
