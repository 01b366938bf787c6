"""Reporters of a run's metrics: the file ``metrics.jsonl``, TensorBoard, and Weights & Biases."""

# ruff: noqa: ARG002 - transformers defines the arguments of a callback

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback, rewrite_logs

from trainer.training.config import ConfigError, TrainConfig
from trainer.training.run_info import MetricsFile, RunInfo

SUMMARIES = (
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_loss",
    "total_flos",
)
"""Values that transformers logs once, at the end of a run."""


def check_reporters(config: TrainConfig) -> None:
    """Check that the packages of the recipe's reporters are installed.

    Raises:
        ConfigError: wandb is missing.
    """
    if config.wandb_project is not None and importlib.util.find_spec("wandb") is None:
        raise ConfigError("wandb_project is set but wandb is not installed: pip install 'ih-grpo[wandb]'")


def make_reporters(config: TrainConfig, info: RunInfo) -> list[TrainerCallback]:
    """Return the callbacks that record the run's metrics, for the main process.

    Raises:
        ConfigError: wandb is missing.
    """
    check_reporters(config)
    reporters: list[TrainerCallback] = [MetricsReporter(MetricsFile(config.run_dir))]
    if config.tensorboard:
        reporters.append(TensorBoardReporter(config.run_dir / "tensorboard"))
    if config.wandb_project is not None:
        reporters.append(WandbReporter(config, info))
    return reporters


class MetricsReporter(TrainerCallback):
    """Callback that writes ``metrics.jsonl``."""

    def __init__(self, file: MetricsFile) -> None:
        self._file = file

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._file.truncate(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and not any(name in logs for name in SUMMARIES):
            self._file.append(state.global_step, logs)


class TensorBoardReporter(TensorBoardCallback):
    """Callback that writes curves for TensorBoard. A resumed run replaces the steps after its checkpoint.

    Args:
        directory: of the run, not one named by date.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._directory = directory

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        purge_step = state.global_step + 1 if state.global_step else 0
        self.tb_writer = SummaryWriter(str(self._directory), purge_step=purge_step)
        super().on_train_begin(args, state, control, **kwargs)  # type: ignore[no-untyped-call]


class WandbReporter(TrainerCallback):
    """Callback that logs to one run of Weights & Biases, which continues when the training resumes.

    transformers' own callback starts another run each time, and saves the arguments of its trainer instead of
    the recipe.

    Args:
        config: the recipe, saved as the run's config.
        info: contains the run's id.
    """

    def __init__(self, config: TrainConfig, info: RunInfo) -> None:
        import wandb

        self._wandb: Any = wandb
        self._config, self._info = config, info
        self._run: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._run = self._wandb.init(
            project=self._config.wandb_project,
            id=self._info.wandb_id,
            resume="allow",
            name=os.environ.get("WANDB_NAME", self._config.run_dir.name),
            dir=os.environ.get("WANDB_DIR", str(self._config.run_dir)),
            config={**self._info.recipe, "processes": self._info.processes},
            allow_val_change=True,
        )
        self._run.define_metric("train/global_step")
        self._run.define_metric("*", step_metric="train/global_step", step_sync=True)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        curves = {name: value for name, value in (logs or {}).items() if name not in SUMMARIES}
        self._run.summary.update({name: logs[name] for name in SUMMARIES if logs and name in logs})
        if curves:
            curves = rewrite_logs(curves)  # type: ignore[no-untyped-call]
            self._run.log({**curves, "train/global_step": state.global_step})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._run.finish()
