"""Atomic checkpoints, and the checks before a run resumes from one.

A run resumes only with the same problems and with the same values of all settings that affect the result.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from service.engines.checkpoint import MANIFEST, CheckpointError, verify
from trainer.training.config import ConfigError, TrainConfig
from trainer.training.recipe_tables import with_preset
from trainer.training.run_files import sync_to_disk

_NAME: Final = re.compile(r"checkpoint-(\d+)")
_STAGING: Final = ".staging-"


def staging_path(final: Path) -> Path:
    """Return the path at which ``final`` is written until it is complete."""
    return final.parent / f"{_STAGING}{final.name}"


@contextmanager
def staged(final: Path) -> Iterator[Path]:
    """Yield a directory to write a checkpoint into; rename it to ``final`` if the block succeeds.

    All files are synced to disk before the rename, and the rename is atomic: a process killed at any moment
    leaves either no ``final`` or a complete one.

    Raises:
        CheckpointError: ``final`` exists.
    """
    if final.exists():
        raise CheckpointError(f"{final} already exists: checkpoints are never overwritten")
    staging = staging_path(final)
    _remove(staging)
    staging.mkdir(parents=True)
    try:
        yield staging
        files = sorted(path for path in staging.rglob("*") if path.is_file())
        sizes = {str(path.relative_to(staging)): path.stat().st_size for path in files}
        (staging / MANIFEST).write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")
        for path in [*staging.rglob("*"), staging]:
            sync_to_disk(path)
        staging.rename(final)
        sync_to_disk(final.parent)
    except BaseException:
        _remove(staging)
        raise


def latest(directory: Path) -> Path | None:
    """Return the checkpoint of the highest step in ``directory``, or None if there are no checkpoints.

    Raises:
        CheckpointError: that checkpoint is damaged. Older ones are not used: a person has to decide that.
    """
    checkpoints = _checkpoints(directory)
    if not checkpoints:
        return None
    verify(checkpoints[-1])
    return checkpoints[-1]


def prune(directory: Path, keep: int) -> None:
    """Remove all but the ``keep`` newest checkpoints, and the unfinished ones of killed processes."""
    for checkpoint in _checkpoints(directory)[:-keep]:
        # Renamed first, so that a partly removed checkpoint is never taken for a complete one.
        checkpoint.rename(staging_path(checkpoint))
    for leftover in directory.glob(f"{_STAGING}*"):
        _remove(leftover)


def _checkpoints(directory: Path) -> list[Path]:
    named = ((_NAME.fullmatch(path.name), path) for path in directory.glob("checkpoint-*"))
    return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


STATE_FILE: Final = "run_state.json"

MAY_CHANGE: Final = frozenset(
    {
        "run_dir", "steps", "micro_batch_samples", "gradient_checkpointing", "device", "engine_slots",
        "threads", "max_concurrent_episodes", "sandbox", "runner_address", "runner_token_file",
        "sandbox_image", "max_containers", "eager", "save_every", "keep_checkpoints", "save_rollouts",
        "tensorboard", "wandb_project", "data", "model", "generation", "generation_urls",
        "generation_key_file", "follower_urls", "follower_key_file", "weights_dir", "ray",
        "weight_transfer", "weight_transfer_port", "vllm_args", "decontaminate", "decontaminate_ngram",
        "decontaminate_share",
    }
)  # fmt: skip
"""Fields that may differ when a run resumes: they do not affect the result.

``data`` and ``decontaminate`` are included because problems are compared by content, and ``model`` because
the weights come from the checkpoint."""


def write_run_state(directory: Path, config: TrainConfig, problems: str, skipped_steps: int) -> None:
    """Save the state that `check_resumable` compares beside a checkpoint."""
    state = {"skipped_steps": skipped_steps, "problems": problems, "config": config.model_dump(mode="json")}
    (directory / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def check_resumable(checkpoint: Path, config: TrainConfig, problems: str) -> int:
    """Check that a run with ``config`` can resume from ``checkpoint``; return the steps skipped until then.

    Args:
        checkpoint: its directory.
        config: the run to resume.
        problems: fingerprint of the problem set.

    Raises:
        CheckpointError: the checkpoint has no readable run state.
        ConfigError: a setting or the problems differ; the message names the field.
    """
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        saved, skipped = dict(state["config"]), int(state["skipped_steps"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{checkpoint} has no readable {STATE_FILE}: remove it, or use another run_dir"
        ) from None
    saved = {**_defaults(), **with_preset(saved)}
    for name, value in config.model_dump(mode="json").items():
        if name not in MAY_CHANGE and saved[name] != value:
            raise ConfigError(
                f"{name} is {value!r}, but the run in {config.run_dir} was started with {saved[name]!r}: "
                f"restore the value, or use another run_dir"
            )
    if state.get("problems") != problems:
        raise ConfigError(
            f"data: the problems differ from those that the run in {config.run_dir} was started with: "
            f"use the same data, or another run_dir"
        )
    return skipped


def _defaults() -> dict[str, Any]:
    """Return the defaults of all fields: the values of fields that the checkpoint's version did not have."""
    required = {"model": "", "data": ("",), "run_dir": ""}
    return TrainConfig.model_validate(required).model_dump(mode="json")
