"""Construction of the embedded engine, the sandbox and the training set from their settings."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

import torch
from accelerate import PartialState

from service.cli.output import warn
from service.common.machine import available_memory
from service.deferral.policy import DeferralPolicy
from service.deferral.prompt import with_instruction
from service.engines.base import Tokenizer
from service.engines.settings import TransformersSettings
from service.engines.transformers.engine import TransformersEngine
from service.sandbox.base import Sandbox
from service.sandbox.factory import RunnerTlsFiles, SandboxOptions, create_sandbox, instance_name
from service.sandbox.settings import PoolSettings
from trainer.data.decontamination import Report, find_overlaps
from trainer.data.problems import DataError, Problem
from trainer.data.sources import load_benchmarks, load_source
from trainer.training.config import ConfigError, TrainConfig
from trainer.training.memory_reservation import Reservation, reserve_memory
from trainer.training.runtime_config import RuntimeConfig

_CONTAINER_BYTES: Final = PoolSettings().memory_mb << 20


def check_device(device: str) -> None:
    """Check that ``device`` of a recipe is available.

    Raises:
        ConfigError: it is not.
    """
    if not device.startswith("cuda"):
        return
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not gpus:
        raise ConfigError(f"device is {device!r}, but torch finds no GPU: set device = 'auto' or 'cpu'")
    if int(device.partition(":")[2] or 0) >= gpus:
        raise ConfigError(f"device is {device!r}, but there are only {gpus} GPUs, counted from 0")


def select_device(processes: PartialState, device: str) -> None:
    """Make ``device`` of a recipe the device of accelerate, which otherwise takes the first GPU.

    Raises:
        ConfigError: the device is not available, or it is one GPU for several processes.
    """
    check_device(device)
    if not device.startswith("cuda:"):
        return
    if processes.num_processes > 1:
        raise ConfigError(
            f"device is {device!r}, but each of the {processes.num_processes} processes needs its own GPU: "
            f"set device = 'cuda'"
        )
    processes.device = torch.device(device)
    torch.cuda.set_device(processes.device)


def make_engine(
    config: RuntimeConfig, model_dir: Path, policy: DeferralPolicy, device: str
) -> TransformersEngine:
    """Return the embedded engine for ``config``, not started."""
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


def engine_dtype(config: RuntimeConfig, device: str) -> Literal["auto", "float32", "bfloat16"]:
    """Return ``config.engine_dtype``, with ``auto`` resolved to float32 on a CPU.

    The loss compares the engine's log-probs with the trainer's, so rounding must not depend on the CPU.
    """
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return "float32" if config.engine_dtype == "auto" and not on_gpu else config.engine_dtype


def _reserve_containers(config: RuntimeConfig) -> Reservation:
    """Reserve the memory of all containers at their limits.

    By default these are as many as fit into half of the memory that other runs have not reserved, at least 4
    and at most one per episode.
    """
    available = available_memory()

    def count(budget: int) -> int:
        fitting = max(4, budget // 2 // _CONTAINER_BYTES)
        return config.max_containers or min(config.max_concurrent_episodes, fitting)

    reservation = reserve_memory(available, lambda budget: count(budget) * _CONTAINER_BYTES)
    others, size, budget = (
        f"{number / 2**30:.1f} GiB" for number in (reservation.others, reservation.size, reservation.budget)
    )
    if reservation.others and reservation.size > reservation.budget:
        warn(
            f"memory: the containers of other runs here may use {others}, which leaves {budget}, and those "
            f"of this run may use {size}: lower max_containers, or wait until the others end"
        )
    elif reservation.size < count(available) * _CONTAINER_BYTES:
        warn(
            f"max_containers is {reservation.size // _CONTAINER_BYTES} instead of {count(available)}: the "
            f"containers of other runs here may use {others}. Set max_containers to use another number"
        )
    return reservation


def make_sandbox(config: RuntimeConfig, policy: DeferralPolicy) -> Sandbox:
    """Return the sandbox for ``config``, not started.

    Raises:
        ValueError: the runner's secret is not readable.
    """
    # A runner limits its containers itself, and may be on another machine.
    reservation = None if config.sandbox == "runner" else _reserve_containers(config)
    containers = (
        config.max_concurrent_episodes if reservation is None else reservation.size // _CONTAINER_BYTES
    )
    sandbox = create_sandbox(
        SandboxOptions(
            kind=config.sandbox,
            pool_size=2,
            max_containers=containers,
            # A batch has more episodes than containers, and each episode keeps its container until it ends.
            queue_timeout_s=600.0,
            run_limit_s=policy.run_limit_s,
            image=config.sandbox_image,
            reuse=True,  # all episodes belong to one run
            instance=instance_name("train"),
            runner_addresses=config.runner_address,
            runner_token_file=config.runner_token_file,
            runner_tls=RunnerTlsFiles(config.runner_ca_file, config.runner_cert_file, config.runner_key_file),
        )
    )
    if reservation is not None:
        weakref.finalize(sandbox, reservation.release)
    return sandbox


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Problems to train on, and the numbers of skipped ones by reason."""

    problems: tuple[Problem, ...]
    too_long: int
    without_answer: int
    bad_gold: int = 0
    overlaps: Report | None = None
    """Overlaps with evaluation problems; None without ``decontaminate``."""

    def __str__(self) -> str:
        skipped = [
            f"{self.too_long:,} too long",
            f"{self.without_answer:,} without an answer",
            f"{self.bad_gold:,} with a bad gold answer",
        ]
        if self.overlaps is not None:
            skipped.append(f"{len(self.overlaps.contaminated):,} contaminated")
        return f"{len(self.problems):,} problems (skipped: {', '.join(skipped)})"


def load_training_set(
    config: TrainConfig, tokenizer: Tokenizer, policy: DeferralPolicy, tools: str = ""
) -> TrainingSet:
    """Load all problems of ``config.data`` whose prompts leave room for an answer.

    Args:
        config: the run.
        tokenizer: of its model.
        policy: names the instruction in the prompts.
        tools: section of the prompts that lists the tools.

    Raises:
        ConfigError: the tokenizer has no execute marker, so the model cannot defer code.
        DataError: a source is unreadable or a row is invalid.
    """
    if tokenizer.token_id(policy.marker) is None:
        raise ConfigError(f"model: its tokenizer has no token {policy.marker!r}, so it cannot defer code")

    def count_tokens(problem: Problem) -> int:
        turns = with_instruction(problem.messages, policy.prompt, tools)
        return len(tokenizer.render_chat(turns, template_kwargs={"enable_thinking": config.thinking}))

    limit = min(config.max_prompt_tokens, policy.max_episode_tokens - 1)
    check_gold = any(spec.name == "math" for spec in config.rewards)
    sets = [
        load_source(source, check_gold=check_gold, count_tokens=count_tokens, max_prompt_tokens=limit)
        for source in config.data
    ]
    problems = tuple(problem for loaded in sets for problem in loaded.problems)
    overlaps = _find_overlaps(config, problems)
    if overlaps is not None:
        problems = tuple(problem for problem in problems if problem.id not in overlaps.contaminated)
        if not problems:
            raise DataError("decontaminate: every training problem overlaps with an evaluation problem")
    return TrainingSet(
        problems,
        sum(loaded.too_long for loaded in sets),
        sum(loaded.without_answer for loaded in sets),
        sum(loaded.bad_gold for loaded in sets),
        overlaps,
    )


def _find_overlaps(config: TrainConfig, problems: Sequence[Problem]) -> Report | None:
    if not config.decontaminate:
        return None
    return find_overlaps(
        problems,
        load_benchmarks(config.decontaminate),
        ngram=config.decontaminate_ngram,
        min_share=config.decontaminate_share,
    )


class Startable(Protocol):
    """A resource that is started and stopped with the run, such as an engine or a sandbox."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


async def start_all(stack: AsyncExitStack, *parts: Startable) -> None:
    """Start ``parts`` in order. ``stack`` stops them, including a part whose start failed.

    Raises:
        EngineError, SandboxError: a part failed to start.
    """
    for part in parts:
        stack.push_async_callback(part.stop)
        await part.start()
