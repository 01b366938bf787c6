"""Checkpoints that are whole or not there.

Whether a run can go on from a checkpoint: the same problems, and the same settings where they decide.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from service.engines.checkpoint import MANIFEST, CheckpointError, verify
from trainer.training.config import ConfigError, TrainConfig

_NAME: Final = re.compile(r"checkpoint-(\d+)")
_STAGING: Final = ".staging-"


def staging_path(final: Path) -> Path:
    """Where ``final`` is written before it is whole."""
    return final.parent / f"{_STAGING}{final.name}"


@contextmanager
def staged(final: Path) -> Iterator[Path]:
    """A directory to write a checkpoint into, which becomes ``final`` when the block ends without an error.

    Everything is on the disk before the rename, and the rename is atomic: a process killed at any moment
    leaves either no ``final`` or a whole one.

    Raises:
        CheckpointError: ``final`` exists.
    """
    if final.exists():
        raise CheckpointError(f"{final} exists: checkpoints are never written over")
    staging = staging_path(final)
    _remove(staging)
    staging.mkdir(parents=True)
    try:
        yield staging
        files = sorted(path for path in staging.rglob("*") if path.is_file())
        sizes = {str(path.relative_to(staging)): path.stat().st_size for path in files}
        (staging / MANIFEST).write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")
        for path in [*staging.rglob("*"), staging]:
            _sync(path)
        staging.rename(final)
        _sync(final.parent)
    except BaseException:
        _remove(staging)
        raise


def latest(directory: Path) -> Path | None:
    """The whole checkpoint of the highest step in ``directory``; None where there is none.

    Raises:
        CheckpointError: the one of the highest step is damaged. Falling back to an older one is for a human.
    """
    checkpoints = _checkpoints(directory)
    if not checkpoints:
        return None
    verify(checkpoints[-1])
    return checkpoints[-1]


def prune(directory: Path, keep: int) -> None:
    """Remove all but the ``keep`` newest checkpoints, and what a killed process left unfinished."""
    for checkpoint in _checkpoints(directory)[:-keep]:
        # Renamed first, so that one half removed is never taken for whole.
        checkpoint.rename(staging_path(checkpoint))
    for leftover in directory.glob(f"{_STAGING}*"):
        _remove(leftover)


def write_atomically(path: Path, data: bytes) -> None:
    """Write one file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def _checkpoints(directory: Path) -> list[Path]:
    named = ((_NAME.fullmatch(path.name), path) for path in directory.glob("checkpoint-*"))
    return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
