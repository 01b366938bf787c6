from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from rich.console import Console

from trainer.training.config import ConfigError, TrainConfig
from trainer.training.run import train
from trainer.training.setup import select_device
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


@pytest.fixture
def new_state() -> Iterator[None]:
    """No state of accelerate from other tests, and none that is left behind."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("new_state")
def test_one_gpu_of_several_is_selected(tmp_path: Path) -> None:
    with (
        patch("torch.cuda.is_available", return_value=True),
        patch("torch.cuda.device_count", return_value=4),
        patch("torch.cuda.set_device"),
    ):
        arguments = grpo_arguments(config(tmp_path, device="cuda:1"))
        assert arguments.device == PartialState().device == torch.device("cuda:1")
        assert arguments.n_gpu == 1
        assert grpo_arguments(config(tmp_path, device="auto")).n_gpu == 1


@pytest.mark.usefixtures("new_state")
def test_rejects_a_device_that_is_not_available(tmp_path: Path) -> None:
    state = PartialState(cpu=True)
    with patch("torch.cuda.is_available", return_value=False):
        for device in ("cuda", "cuda:1"):
            with pytest.raises(ConfigError, match="but torch finds no GPU: set device = 'auto' or 'cpu'"):
                select_device(state, device)
            with pytest.raises(ConfigError, match="torch finds no GPU"):
                train(config(tmp_path, device=device), Console(file=io.StringIO()))
        select_device(state, "auto")
    with (
        patch("torch.cuda.is_available", return_value=True),
        patch("torch.cuda.device_count", return_value=2),
    ):
        select_device(state, "cuda")
        with pytest.raises(ConfigError, match="only 2 GPUs, counted from 0"):
            select_device(state, "cuda:2")
        with pytest.raises(ConfigError, match="each of the 8 processes needs its own GPU"):
            select_device(SimpleNamespace(num_processes=8), "cuda:1")  # type: ignore[arg-type]
    assert state.device == torch.device("cpu")


def test_bfloat16_without_a_gpu(tmp_path: Path) -> None:
    with patch("torch.cuda.is_available", return_value=False):
        assert grpo_arguments(config(tmp_path, device="auto", dtype="bfloat16")).bf16
