from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerControl, TrainerState, TrainingArguments

from tests.support.run_dirs import write_run
from trainer.training.config import ConfigError
from trainer.training.reporters import TensorBoardReporter, WandbReporter, check_reporters, make_reporters
from trainer.training.run_info import MetricsFile, read_info

ARGS = TrainingArguments(output_dir="unused", report_to=[])


class FakeWandb(SimpleNamespace):
    """A module that records what is sent to Weights & Biases."""

    def __init__(self) -> None:
        super().__init__(started=[], logged=[], finished=0, summary={})

    def init(self, **options: Any) -> FakeWandb:
        self.started.append(options)
        return self

    def define_metric(self, *names: str, **options: Any) -> None:
        pass

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for name in ("WANDB_NAME", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    return fake


def report(run_dir: Path, step: int, logs: dict[str, Any]) -> None:
    """One start of a run that logs once."""
    config = write_run(run_dir, [], wandb_project="experiments", tensorboard=False, learning_rate=0.5)
    info = read_info(run_dir)
    assert info is not None
    state, control = TrainerState(global_step=step, max_steps=4), TrainerControl()
    for reporter in make_reporters(config, info):
        reporter.on_train_begin(ARGS, TrainerState(global_step=0), control)
        reporter.on_log(ARGS, state, control, logs=logs)
        reporter.on_train_end(ARGS, state, control)


def test_tensorboard_has_each_step_once_after_a_resume(tmp_path: Path) -> None:
    control = TrainerControl()
    for start, steps in ((0, (1, 2, 3)), (1, (2, 3, 4))):
        reporter = TensorBoardReporter(tmp_path)
        reporter.on_train_begin(ARGS, TrainerState(global_step=start), control)
        for step in steps:
            state = TrainerState(global_step=step)
            reporter.on_log(ARGS, state, control, logs={"reward": float(10 * start + step)})  # type: ignore[no-untyped-call]
        reporter.on_train_end(ARGS, TrainerState(global_step=steps[-1]), control)  # type: ignore[no-untyped-call]
    curves = EventAccumulator(str(tmp_path))  # type: ignore[no-untyped-call]
    curves.Reload()  # type: ignore[no-untyped-call]
    points = [(point.step, point.value) for point in curves.Scalars("train/reward")]  # type: ignore[no-untyped-call]
    assert points == [(1, 1.0), (2, 12.0), (3, 13.0), (4, 14.0)]


def test_wandb_gets_recipe_and_curves(tmp_path: Path, wandb: FakeWandb) -> None:
    report(tmp_path, 3, {"reward": 0.5, "eval_accuracy": 0.25, "train_runtime": 9.0})
    (options,) = wandb.started
    assert options["project"] == "experiments"
    assert options["config"]["learning_rate"] == 0.5
    assert options["config"]["processes"] == 1
    assert "lr_scheduler_type" not in options["config"]
    assert options["dir"] == str(tmp_path)
    assert wandb.logged == [{"train/reward": 0.5, "eval/accuracy": 0.25, "train/global_step": 3}]
    assert wandb.summary == {"train_runtime": 9.0}
    assert wandb.finished == 1


def test_resumed_run_continues_on_wandb(tmp_path: Path, wandb: FakeWandb) -> None:
    for step in (2, 4):
        report(tmp_path, step, {"reward": 0.5})
    first, second = wandb.started
    assert first["id"] == second["id"]
    assert first["resume"] == second["resume"] == "allow"


def test_missing_wandb_is_reported_with_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"wandb is not installed: pip install 'ih-grpo\[wandb\]'"):
        check_reporters(write_run(tmp_path, [], wandb_project="experiments"))


def test_metrics_file_has_steps_but_no_summaries(tmp_path: Path, wandb: FakeWandb) -> None:
    report(tmp_path, 3, {"reward": 0.5})
    report(tmp_path / "other", 4, {"train_runtime": 9.0})
    assert MetricsFile(tmp_path).read() == [{"step": 3, "reward": 0.5}]
    assert MetricsFile(tmp_path / "other").read() == []
    assert json.loads((tmp_path / "run.json").read_text())["recipe"]["wandb_project"] == "experiments"


def test_reporters_depend_on_recipe(tmp_path: Path, wandb: FakeWandb) -> None:
    config = write_run(tmp_path, [], tensorboard=False)
    info = read_info(tmp_path)
    assert info is not None
    assert not any(isinstance(reporter, WandbReporter) for reporter in make_reporters(config, info))
