"""Whether a run can go on from a checkpoint: the same problems, and the same settings where they decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from service.checkpoint import CheckpointError
from trainer.config import ConfigError, TrainConfig

STATE_FILE: Final = "run_state.json"

MAY_CHANGE: Final = frozenset(
    {
        "run_dir", "steps", "micro_batch_samples", "gradient_checkpointing", "device", "engine_slots",
        "threads", "max_concurrent_episodes", "sandbox", "runner_address", "runner_token_file",
        "sandbox_image", "max_containers", "eager", "save_every", "keep_checkpoints", "save_rollouts",
        "tensorboard", "wandb_project", "data", "model", "generation", "generation_urls",
        "generation_key_file", "follower_urls", "follower_key_file", "weights_dir", "ray",
        "weight_transfer", "weight_transfer_port", "vllm_args",
    }
)  # fmt: skip
"""Fields that say where and how fast, not what is learned. Problems are compared by content, not by path, and
the weights are the checkpoint's."""


def write_state(directory: Path, config: TrainConfig, problems: str, skipped_steps: int) -> None:
    """Keep beside a checkpoint what going on from it has to check."""
    state = {"skipped_steps": skipped_steps, "problems": problems, "config": config.model_dump(mode="json")}
    (directory / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def check_resumable(checkpoint: Path, config: TrainConfig, problems: str) -> int:
    """The number of steps that the run had skipped by then.

    Args:
        problems: fingerprint of the problem set.

    Raises:
        CheckpointError: it is not a checkpoint of such a run.
        ConfigError: going on under ``config`` would be another run; the message names the field.
    """
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        saved, skipped = dict(state["config"]), int(state["skipped_steps"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{checkpoint} has no readable {STATE_FILE}: remove it, or use another run_dir"
        ) from None
    for name, value in config.model_dump(mode="json").items():
        if name not in MAY_CHANGE and saved.get(name) != value:
            raise ConfigError(
                f"{name} is {value!r}, but the run in {config.run_dir} was started with {saved.get(name)!r}: "
                f"set it back, or use another run_dir"
            )
    if state.get("problems") != problems:
        raise ConfigError(
            f"data: the problems differ from those that the run in {config.run_dir} was started with: "
            f"use the same, or another run_dir"
        )
    return skipped
