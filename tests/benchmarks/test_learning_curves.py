from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.learning_curves import read_run, table
from trainer.training.run_files import SCHEMA


def write_rollout(run: Path, index: int, rewards: list[float | None]) -> None:
    """Write a rollout in which each sample ran two blocks, one of them delayed, in one flush."""
    rows = [
        {"rollout": index, "reward": r, "executed": 2, "delayed": 1, "tools": '[{"id": "x"}]'}
        for r in rewards
    ]
    (run / "rollouts").mkdir(parents=True, exist_ok=True)
    path = run / "rollouts" / f"rollout-{index:06}.parquet"
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)


def test_reads_a_run_by_step_and_skips_unjudged_samples(tmp_path: Path) -> None:
    write_rollout(tmp_path, 0, [1.0, 0.0, 0.0, None])
    write_rollout(tmp_path, 1, [1.0, 1.0, 1.0, 0.0])
    assert read_run(tmp_path, 2) == {
        "reward": [0.3333, 0.75],
        "delay_rate": [0.5, 0.5],
        "calls": [2.0, 2.0],
        "flushes": [1.0, 1.0],
    }


def test_short_run_is_not_padded(tmp_path: Path) -> None:
    write_rollout(tmp_path, 0, [1.0])
    with pytest.raises(FileNotFoundError):
        read_run(tmp_path, 2)


def test_table_has_mean_and_spread_over_seeds() -> None:
    def run(start: float, end: float) -> dict[str, list[float]]:
        return {
            "reward": [start] * 3 + [end] * 3,
            "delay_rate": [0.25] * 6,
            "calls": [2.0] * 6,
            "flushes": [1.5] * 6,
        }

    lines = table({"ih-grpo-0": run(0.2, 0.8), "ih-grpo-1": run(0.3, 0.9)}).splitlines()
    assert lines[2:] == [
        "| ih-grpo | 0.25 (0.20 – 0.30) | 0.85 (0.80 – 0.90) | 25% (25% – 25%) | 1.50 (1.50 – 1.50) |"
    ]
