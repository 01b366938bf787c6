from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

from trainer.training.config import TrainConfig
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


def test_bfloat16_without_a_gpu(tmp_path: Path) -> None:
    with patch("torch.cuda.is_available", return_value=False):
        assert grpo_arguments(config(tmp_path, device="auto", dtype="bfloat16")).bf16
