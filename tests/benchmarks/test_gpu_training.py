"""The GPU benchmark runs from end to end, with small sizes on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_case_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu_training.py", "--tiny", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=170)
    assert run.returncode == 0, run.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    cases = {(row["model"], row["method"], row["tokens_per_episode"]) for row in results["steps"]}
    assert len(cases) == 8
    assert results["skipped"] == []
    assert all(row["skipped_steps"] == 0 and row["grad_norm"] > 0 for row in results["steps"])
    # Engine and trainer have the same weights, in bfloat16.
    assert all(row["sampler_k3"] < 1e-3 for row in results["steps"])
    assert results["head"][0]["largest_difference"] < 0.05
    assert "| tiny-Qwen3 | full |" in (tmp_path / "results.md").read_text()
    assert not (tmp_path / "work").exists()


def test_cases_after_the_budget_are_listed(tmp_path: Path) -> None:
    command = [
        sys.executable, "benchmarks/gpu_training.py", "--tiny", "--budget-s", "0", "--out", str(tmp_path)
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=170)
    assert run.returncode == 0, run.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["steps"] == []
    assert len(results["skipped"]) == 8
    assert "Skipped for lack of time: tiny-Qwen2 lora" in (tmp_path / "results.md").read_text()
