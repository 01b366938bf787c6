"""Atomic checkpoints, and the checks before a run resumes from one.

A run resumes only with the same problems and with the same values of all settings that affect the result.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from service.engines.adapters import read_base
from service.engines.checkpoint import MANIFEST, CheckpointError, verify
from trainer.training.config import ConfigError, TrainConfig
from trainer.training.recipe_tables import ValidationSettings, with_preset
from trainer.training.run_files import sync_to_disk
from trainer.training.run_info import EVAL_ACCURACY, log_history

_NAME: Final = re.compile(r"checkpoint-(\d+)")
_STAGING: Final = ".staging-"
STATE_FILE: Final = "run_state.json"
BEST_LINK: Final = "best"


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


def prune(directory: Path, keep: int, best: Path | None = None) -> None:
    """Remove all but the ``keep`` newest checkpoints and ``best``, and the unfinished ones of killed
    processes."""
    for checkpoint in _checkpoints(directory)[:-keep]:
        if checkpoint == best:
            continue
        # Renamed first, so that a partly removed checkpoint is never taken for a complete one.
        checkpoint.rename(staging_path(checkpoint))
    for leftover in directory.glob(f"{_STAGING}*"):
        _remove(leftover)


@dataclass(frozen=True, slots=True)
class BestCheckpoint:
    """The best of the checkpoints of a run."""

    path: Path
    metric: str
    """``eval_accuracy``, or ``reward`` in a run without validation."""
    value: float

    def __str__(self) -> str:
        return f"{self.path.name}, {self.metric} {self.value:.3f}"


def find_best(directory: Path, config: TrainConfig) -> BestCheckpoint | None:
    """Return the best checkpoint in ``directory``, the earliest one of equals.

    With ``[validation]`` the one with the highest accuracy, among those that were validated with the same
    problems and samples; else the one with the highest mean reward of the ``save_every`` steps before it.
    None if no checkpoint has a value.
    """
    best: BestCheckpoint | None = None
    for checkpoint in _checkpoints(directory):
        value = _score(checkpoint, config)
        if value is not None and (best is None or value > best.value):
            best = BestCheckpoint(checkpoint, "reward" if config.validation is None else EVAL_ACCURACY, value)
    return best


def link_best(best: Path) -> None:
    """Let the link ``best`` beside the checkpoint point to it.

    Does nothing on file systems without links, or if ``best`` is a directory.
    """
    temporary = best.parent / f"{_STAGING}{BEST_LINK}"
    with suppress(OSError):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(best.name)
        try:
            temporary.replace(best.parent / BEST_LINK)
        except OSError:  # ``best`` is a directory, in a copy of a run in which links were followed
            temporary.unlink()


def _score(checkpoint: Path, config: TrainConfig) -> float | None:
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    history = log_history(checkpoint)
    if config.validation is None:
        rewards = [
            record["reward"]
            for record in history
            if "reward" in record and step - config.save_every < record["step"] <= step
        ]
        return sum(rewards) / len(rewards) if rewards else None
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        validated = ValidationSettings.model_validate(state["config"]["validation"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if validated.model_copy(update={"every": config.validation.every}) != config.validation:
        return None
    found = (
        record[EVAL_ACCURACY] for record in history if record["step"] == step and EVAL_ACCURACY in record
    )
    return next(found, None)


def _checkpoints(directory: Path) -> list[Path]:
    named = ((_NAME.fullmatch(path.name), path) for path in directory.glob("checkpoint-*"))
    return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


MAY_CHANGE: Final = frozenset(
    {
        "run_dir", "steps", "micro_batch_samples", "gradient_checkpointing", "device", "engine_slots",
        "threads", "max_concurrent_episodes", "sandbox", "runner_address", "runner_token_file",
        "runner_ca_file", "runner_cert_file", "runner_key_file",
        "sandbox_image", "max_containers", "eager", "save_every", "keep_checkpoints", "save_rollouts",
        "tensorboard", "wandb_project", "data", "model", "base", "generation", "generation_urls",
        "generation_key_file", "follower_urls", "follower_key_file", "weights_dir", "ray",
        "weight_transfer", "weight_transfer_port", "vllm_args", "decontaminate", "decontaminate_ngram",
        "decontaminate_share", "validation", "push_to", "push_private",
    }
)  # fmt: skip
"""Fields that may differ when a run resumes: they do not affect the result.

``data`` and ``decontaminate`` are included because problems are compared by content. ``model`` and ``base``
are, because the weights come from the checkpoint, and those that do not are compared by content as well."""


def write_run_state(
    directory: Path,
    config: TrainConfig,
    problems: str,
    skipped_steps: int,
    processes: int = 1,
    base: str | None = None,
) -> None:
    """Save the state that `check_resumable` compares beside a checkpoint."""
    state = {
        "skipped_steps": skipped_steps,
        "problems": problems,
        "processes": processes,
        "base": base,
        "config": config.model_dump(mode="json"),
    }
    (directory / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def check_resumable(checkpoint: Path, config: TrainConfig, problems: str, base: str | None = None) -> int:
    """Check that a run with ``config`` can resume from ``checkpoint``; return the steps skipped until then.

    Args:
        checkpoint: its directory.
        config: the run to resume.
        problems: fingerprint of the problem set.
        base: fingerprint of the model that the run starts from; see
            `service.engines.adapters.fingerprint`. None if its weights are not used.

    Raises:
        CheckpointError: the checkpoint has no readable run state.
        ConfigError: a setting, the problems or the base model differ; the message names the field.
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
    if base is not None:
        check_same_base(checkpoint, state.get("base"), base, config.run_dir)
    return skipped


def check_same_base(checkpoint: Path, saved: str | None, found: str, run_dir: Path) -> None:
    """Check that a run resumes with the model that it was started with. The path of the model may differ.

    Args:
        checkpoint: to resume from.
        saved: fingerprint in its state. Default: the one in its ``base.json``. Without both, nothing is
            compared.
        found: fingerprint of the model.
        run_dir: of the run.

    Raises:
        CheckpointError: ``base.json`` is not readable.
        ConfigError: the fingerprints differ.
    """
    if saved is None:
        try:
            identity = read_base(checkpoint)
        except ValueError as error:
            raise CheckpointError(f"{error}: remove {checkpoint}, or use another run_dir") from None
        saved = None if identity is None else identity.sha256
    if saved is not None and saved != found:
        raise ConfigError(
            f"model: its weights differ from those that the run in {run_dir} was started with (fingerprint "
            f"{found[:12]}, before {saved[:12]}): use the same model, or another run_dir"
        )


def _defaults() -> dict[str, Any]:
    """Return the defaults of all fields: the values of fields that the checkpoint's version did not have."""
    required = {"model": "", "data": ("",), "run_dir": ""}
    return TrainConfig.model_validate(required).model_dump(mode="json")


def resume_notices(checkpoint: Path, config: TrainConfig, processes: int) -> list[str]:
    """Return what a run does differently after ``checkpoint`` than an uninterrupted one; one line each.

    Args:
        checkpoint: checked with `check_resumable`.
        config: the run to resume.
        processes: training processes.
    """
    state: dict[str, Any] = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    notices = []
    before = state.get("processes", processes)
    if before != processes:
        notices.append(
            f"the run used {before} training processes and resumes on {processes}: from here on the problems "
            f"are divided differently, so its rollouts differ from those of an uninterrupted run"
        )
    steps = state["config"]["steps"]
    if steps != config.steps and config.lr_schedule in ("linear", "cosine"):
        notices.append(
            f"steps is {config.steps}, before it was {steps}: from here on the learning rate follows the "
            f"{config.lr_schedule} schedule of {config.steps} steps"
        )
    return notices
