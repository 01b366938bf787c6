"""Directories of training runs, written without training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.training.checkpoints import staged, write_run_state
from trainer.training.config import TrainConfig
from trainer.training.run_info import MetricsFile, write_info


def write_checkpoint(
    run_dir: Path, step: int, history: Sequence[Mapping[str, float]], config: TrainConfig
) -> Path:
    """A complete checkpoint with the state files of a run and dummy weights."""
    final = run_dir / "checkpoints" / f"checkpoint-{step}"
    with staged(final) as staging:
        (staging / "config.json").write_text("{}")
        (staging / "model.safetensors").write_bytes(bytes(range(256)))
        (staging / "optimizer.pt").write_bytes(b"state")
        (staging / "trainer_state.json").write_text(json.dumps({"log_history": list(history)}))
        write_run_state(staging, config, "problems", 0)
    return final


def write_run(
    run_dir: Path,
    history: Sequence[Mapping[str, float]],
    *,
    recipe_name: str = "quickstart",
    **fields: object,
) -> TrainConfig:
    """A run with ``run.json`` and ``metrics.jsonl``, without checkpoints."""
    values = {"model": "m", "data": ["d"], "run_dir": run_dir, "steps": 4, "save_every": 2, **fields}
    config = TrainConfig.model_validate(values)
    write_info(config, 1, recipe_name)
    for record in history:
        MetricsFile(run_dir).append(int(record["step"]), {k: v for k, v in record.items() if k != "step"})
    return config
