"""Builds what a run needs from its settings: engine, sandbox, problems."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch

from service.deferral.policy import DeferralPolicy
from service.deferral.prompt import with_instruction
from service.engines.base import Tokenizer
from service.engines.settings import TransformersSettings
from service.engines.transformers.engine import TransformersEngine
from service.sandbox.base import Sandbox
from service.sandbox.factory import SandboxOptions, create_sandbox, instance_name
from trainer.data.problems import Problem
from trainer.data.sources import load_source
from trainer.training.config import ConfigError, TrainConfig
from trainer.training.runtime_config import MachineConfig


def make_engine(
    config: MachineConfig, model_dir: Path, policy: DeferralPolicy, device: str
) -> TransformersEngine:
    """The embedded engine for ``config``, not started."""
    return TransformersEngine(
        TransformersSettings(
            model=str(model_dir),
            device=device,
            dtype=engine_dtype(config, device),
            max_slots=config.engine_slots,
            max_context=policy.max_episode_tokens,
            threads=config.threads,
        )
    )


def engine_dtype(config: MachineConfig, device: str) -> Literal["auto", "float32", "bfloat16"]:
    """``config.engine_dtype``, but float32 for ``auto`` on a CPU, whatever a server would take there.

    The loss compares the engine's logprobs with the trainer's, so rounding is not to depend on the CPU.
    """
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return "float32" if config.engine_dtype == "auto" and not on_gpu else config.engine_dtype


def make_sandbox(config: MachineConfig, policy: DeferralPolicy) -> Sandbox:
    """The sandbox for ``config``, not started.

    Raises:
        ValueError: the runner's secret can't be read.
    """
    return create_sandbox(
        SandboxOptions(
            kind=config.sandbox,
            pool_size=2,
            max_containers=config.max_containers,
            # A batch has more episodes than containers, and each episode keeps its container until it ends.
            queue_timeout_s=600.0,
            run_limit_s=policy.run_limit_s,
            image=config.sandbox_image,
            instance=instance_name("train"),
            runner_address=config.runner_address,
            runner_token_file=config.runner_token_file,
        )
    )


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Problems to train on, and how many were left out, and why."""

    problems: tuple[Problem, ...]
    too_long: int
    without_answer: int
    bad_gold: int = 0

    def __str__(self) -> str:
        return (
            f"{len(self.problems):,} problems ({self.too_long:,} left out for their length, "
            f"{self.without_answer:,} without an answer, {self.bad_gold:,} with a bad gold answer)"
        )


def load_training_set(config: TrainConfig, tokenizer: Tokenizer, policy: DeferralPolicy) -> TrainingSet:
    """All problems of ``config.data`` whose prompts leave room for an answer.

    Raises:
        ConfigError: the model can't play episodes: its tokenizer has no execute marker.
        DataError: a source can't be read or a row does not fit.
    """
    if tokenizer.token_id(policy.marker) is None:
        raise ConfigError(f"model: its tokenizer has no token {policy.marker!r}, so it can't defer")

    def count_tokens(question: str) -> int:
        turns = with_instruction([{"role": "user", "content": question}], policy.prompt)
        return len(tokenizer.render_chat(turns, template_kwargs={"enable_thinking": False}))

    limit = min(config.max_prompt_tokens, policy.max_episode_tokens - 1)
    sets = [load_source(source, count_tokens=count_tokens, max_prompt_tokens=limit) for source in config.data]
    return TrainingSet(
        tuple(problem for found in sets for problem in found.problems),
        sum(found.too_long for found in sets),
        sum(found.without_answer for found in sets),
        sum(found.bad_gold for found in sets),
    )


class Part(Protocol):
    """Something that runs for as long as a run does: an engine, a sandbox."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


async def start_all(stack: AsyncExitStack, *parts: Part) -> None:
    """Start them in order; ``stack`` stops them, also where one does not start.

    Raises:
        EngineError, SandboxError: one does not start.
    """
    for part in parts:
        stack.push_async_callback(part.stop)
        await part.start()
