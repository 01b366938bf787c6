"""A training run from recipe to checkpoint: set-up, resuming and clean-up."""

from __future__ import annotations

from contextlib import AsyncExitStack, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import PartialState
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
)
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.utils import logging as transformers_logging

from service.deferral.policy import DeferralPolicy
from service.engines.adapters import fingerprint
from service.engines.base import Tokenizer
from service.engines.model_lookup import locate
from service.sandbox.base import Sandbox
from trainer.training.checkpoints import check_resumable, latest
from trainer.training.config import TrainConfig
from trainer.training.generation import (
    make_generation,
    make_rewards,
    ray_connection,
    rollout_settings,
)
from trainer.training.lora import attach_adapter, inspect_marker_row
from trainer.training.progress import RunProgress
from trainer.training.rollouts import BackgroundLoop, RolloutCollector, Shard
from trainer.training.run_files import run_lock, write_atomically
from trainer.training.setup import load_training_set, start_all
from trainer.training.trainer import IHGRPOTrainer

PROCESS_TIMEOUT: Final = timedelta(hours=2)
"""Time that a process waits for another one, whose rollout may take longer."""


def train(
    config: TrainConfig,
    console: Console,
    *,
    sandbox: Sandbox | None = None,
    trainer_class: type[IHGRPOTrainer] = IHGRPOTrainer,
) -> Path:
    """Train to ``config.steps``, resuming from the last checkpoint in ``config.run_dir`` if there is one.

    Args:
        config: the recipe.
        console: output for progress.
        sandbox: replaces the recipe's sandbox; not started. Unused with Ray.
        trainer_class: a subclass, to observe the training.

    Returns:
        The last checkpoint, ready to be served.

    Raises:
        ConfigError, DataError, CheckpointError, DirectoryError, ValueError: the run cannot start; the
            message gives the reason.
        EngineError, SandboxError, WeightSyncError: the engine or sandbox failed, or a server did not accept
            new weights.
    """
    processes = PartialState(cpu=config.device == "cpu", timeout=PROCESS_TIMEOUT)
    # Two runs in one directory would remove each other's checkpoints.
    with run_lock(config.run_dir) if processes.is_main_process else nullcontext():
        return _train(config, console, processes, sandbox, trainer_class)


def _train(
    config: TrainConfig,
    console: Console,
    processes: PartialState,
    sandbox: Sandbox | None,
    trainer_class: type[IHGRPOTrainer],
) -> Path:
    rewards = make_rewards(config)  # first: a mistake in a reward is found before a model is downloaded
    model_dir = locate(config.model)
    policy = config.resolve_policy(model_dir)
    generation = make_generation(config, model_dir, policy, str(processes.device), sandbox)
    data = load_training_set(config, generation.tokenizer, policy)
    progress = RunProgress(console if processes.is_main_process else Console(quiet=True))
    if processes.is_main_process:
        console.print(str(data), highlight=False)
        if data.overlaps is not None:
            console.print(str(data.overlaps), highlight=False)
            write_atomically(config.run_dir / "decontamination.json", data.overlaps.to_json().encode())
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with ray_connection(config), BackgroundLoop() as loop:
        source = RolloutCollector(
            config,
            rollout_settings(config, policy),
            data.problems,
            generation.tokenizer,
            generation.worker,
            generation.sink,
            rewards,
            loop,
            shard=Shard(processes.process_index, processes.num_processes),
            on_group=progress.on_group,
        )
        checkpoint = latest(config.run_dir / "checkpoints")
        skipped = check_resumable(checkpoint, config, source.fingerprint) if checkpoint else 0
        stack = AsyncExitStack()
        try:
            loop.run(stack.enter_async_context(rewards))
            loop.run(start_all(stack, *generation.parts))
            model, marker_row = _load_model(config, model_dir, policy, generation.tokenizer)
            if processes.is_main_process:
                console.print(marker_row, highlight=False, soft_wrap=True)
            trainer = trainer_class(
                model,
                AutoTokenizer.from_pretrained(model_dir),
                config,
                policy,
                source,
                [progress, *(_curves(config) if processes.is_main_process else ())],
                served_config=_served_config(model_dir),
                base_fingerprint=fingerprint(model_dir) if config.lora else None,
            )
            trainer.skipped_steps = skipped
            trainer.remove_callback(PrinterCallback)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            loop.run(stack.aclose())
    final = latest(config.run_dir / "checkpoints")
    assert final is not None  # noqa: S101 - the last step writes one
    return final


def _load_model(
    config: TrainConfig, model_dir: Path, policy: DeferralPolicy, tokenizer: Tokenizer
) -> tuple[Any, str]:
    """Return the model, with its adapter if it trains one, and a line about the marker's row."""
    marker_id = tokenizer.token_id(policy.marker)
    assert marker_id is not None  # noqa: S101 - the training set was loaded with this tokenizer
    is_half = config.lora is not None and config.dtype == "bfloat16"
    dtype = torch.bfloat16 if is_half else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype)
    row = inspect_marker_row(model, marker_id, tokenizer.vocab_size)
    rate: float | None = config.learning_rate
    if config.lora is not None:
        rate = (config.lora.marker_lr or rate) if config.lora.train_marker else None
        model = attach_adapter(model, config.lora, marker_id, seed=config.seed)
    return model, row.describe(policy.marker, rate)


def _served_config(model_dir: Path) -> dict[str, object]:
    """Return the fields of the model's configuration that training changes and serving needs restored."""
    model = AutoConfig.from_pretrained(model_dir)
    dtype = {} if model.dtype is None else {"dtype": str(model.dtype).removeprefix("torch.")}
    return {**dtype, "use_cache": getattr(model, "use_cache", True)}


def _curves(config: TrainConfig) -> list[TrainerCallback]:
    """Return the TensorBoard callback if enabled. Its directory is the run's, not one named by date."""
    if not config.tensorboard:
        return []
    return [TensorBoardCallback(SummaryWriter(str(config.run_dir / "tensorboard")))]  # type: ignore[no-untyped-call]
