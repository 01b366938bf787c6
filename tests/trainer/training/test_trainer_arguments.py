from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from trainer.training.config import ConfigError, TrainConfig
from trainer.training.reporters import check_reporters
from trainer.training.trainer import grpo_arguments


def config(tmp_path: Path, **changes: Any) -> TrainConfig:
    values = {"model": "m", "data": ("d",), "run_dir": tmp_path, "device": "cpu", "dtype": "float32"}
    return TrainConfig.model_validate({**values, **changes})


def test_recipe_maps_to_trl_arguments(tmp_path: Path) -> None:
    arguments = grpo_arguments(config(tmp_path, micro_batch_samples=8, mini_batch_samples=64))
    assert arguments.per_device_train_batch_size == 8
    assert arguments.gradient_accumulation_steps == 8
    assert arguments.steps_per_generation == 16
    assert (arguments.beta, arguments.learning_rate, arguments.report_to) == (0.0, 1e-6, [])


def test_wandb_is_not_left_to_transformers(tmp_path: Path) -> None:
    assert grpo_arguments(config(tmp_path, wandb_project="p")).report_to == []


def test_wandb_needs_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    installed: set[str] = set()
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: (
            (object() if name in installed else None) if name == "wandb" else find(name, *rest)
        ),
    )
    settings = config(tmp_path, wandb_project="p")
    with pytest.raises(ConfigError, match=r"pip install 'ih-grpo\[wandb\]'"):
        check_reporters(settings)
    installed.add("wandb")
    check_reporters(settings)
