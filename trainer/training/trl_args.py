"""The arguments of TRL's trainer for a recipe."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import fields
from typing import Any, Final

from accelerate import PartialState
from trl.trainer.grpo_config import GRPOConfig

from trainer.training.config import ConfigError, TrainConfig

_CHECKPOINTING: Final = next(
    field.name
    for field in fields(GRPOConfig)
    if field.name in ("activation_checkpointing", "gradient_checkpointing")
)
"""Name of the field, which transformers 5.23 changed; vLLM 0.32 needs an older version."""


def grpo_arguments(config: TrainConfig) -> GRPOConfig:
    """Return TRL's arguments for ``config``.

    TRL's options for sampling, rewards and loss are unused: the trainer replaces these parts.

    Raises:
        ConfigError: the batch is not divisible by the number of processes, or wandb is not installed.
    """
    processes = PartialState(cpu=config.device == "cpu").num_processes
    if config.prompts_per_step % processes:
        raise ConfigError(
            f"prompts_per_step is {config.prompts_per_step}: it must be a multiple of the number of "
            f"processes, {processes}"
        )
    if config.mini_batch % (config.micro_batch_samples * processes):
        raise ConfigError(
            f"micro_batch_samples is {config.micro_batch_samples}: on {processes} processes it must divide "
            f"{config.mini_batch} / {processes}"
        )
    checkpointing: dict[str, Any] = {_CHECKPOINTING: config.gradient_checkpointing}
    passes = config.mini_batch // (config.micro_batch_samples * processes)
    return GRPOConfig(
        output_dir=str(config.run_dir),
        seed=config.seed,
        max_steps=config.steps,
        num_generations=config.group_size,
        per_device_train_batch_size=config.micro_batch_samples,
        gradient_accumulation_steps=passes,
        steps_per_generation=passes * config.updates_per_rollout,
        temperature=config.temperature,
        beta=0.0,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_schedule,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.dtype == "bfloat16",
        **checkpointing,
        use_cpu=config.device == "cpu",
        save_strategy="steps",
        save_steps=config.save_every,
        logging_strategy="steps",
        logging_steps=1,
        report_to=_reporters(config),
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=False,
    )


def _reporters(config: TrainConfig) -> list[str]:
    if config.wandb_project is None:
        return []
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError("wandb_project is set but wandb is not installed: pip install 'ih-grpo[wandb]'")
    # transformers reads these from the environment only.
    os.environ["WANDB_PROJECT"] = config.wandb_project
    os.environ.setdefault("WANDB_DIR", str(config.run_dir))
    return ["wandb"]
