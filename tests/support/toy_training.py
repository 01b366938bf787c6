"""Training on the toy task with samples from vLLM, and checks that hold for every kind of weight transfer."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.support.toy_task import GOLD, QUESTION, toy_sandbox
from trainer.training.config import TrainConfig
from trainer.training.run import train


def assert_learns_on_vllm(folder: Path, checkpoint: Path, **fields: Any) -> None:
    """Train for some steps: the reward rises, and vLLM samples with each step's weights.

    Args:
        folder: for data and run.
        checkpoint: from ``make_toy_checkpoint``.
        fields: of ``TrainConfig``.
    """
    data = folder / "problems.jsonl"
    data.write_text(json.dumps({"question": QUESTION, "answer": GOLD}) + "\n")
    values: dict[str, Any] = {
        "model": str(checkpoint), "data": (str(data),), "run_dir": folder / "run", "steps": 8,
        "prompts_per_step": 4, "group_size": 8, "min_valid_samples": 2, "min_group_std": 0.0,
        "oversample": 1.0, "micro_batch_samples": 16, "learning_rate": 1e-3, "dtype": "float32",
        "device": "cpu", "threads": 1, "save_every": 8, "tensorboard": False, "generation": "vllm",
    }  # fmt: skip
    config = TrainConfig.model_validate({**values, **fields})
    last = train(config, Console(file=io.StringIO()), sandbox=toy_sandbox())
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    # At every step, vLLM's logprobs must match those of the trainer's model.
    assert max(entry["logprob_gap"] for entry in history) < 1e-4
    rewards = [entry["reward"] for entry in history]
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.15
