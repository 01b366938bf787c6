"""Training and evaluation of the quickstart checkpoint with real containers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from service.engines.checkpoint import quickstart
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.docker.settings import DockerSandboxSettings
from trainer.evaluation.evaluate import EvalConfig
from trainer.evaluation.run import run_evaluation
from trainer.training.checkpoints import latest
from trainer.training.config import TrainConfig
from trainer.training.run import train

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

MACHINE: dict[str, Any] = {
    "model": str(quickstart()), "device": "cpu", "threads": 1, "engine_slots": 8, "max_concurrent_episodes": 4
}  # fmt: skip


def test_training_step_with_docker(tmp_path: Path, docker_sandbox_settings: DockerSandboxSettings) -> None:
    config = TrainConfig(
        **MACHINE, data=("quickstart:20",), run_dir=tmp_path, steps=1, prompts_per_step=2, group_size=4,
        min_valid_samples=2, oversample=1.0, micro_batch_samples=2, dtype="float32", tensorboard=False,
    )  # fmt: skip
    checkpoint = train(config, Console(file=io.StringIO()), sandbox=DockerSandbox(docker_sandbox_settings))
    assert checkpoint == latest(tmp_path / "checkpoints")
    records = pq.read_table(tmp_path / "rollouts" / "rollout-000000.parquet").to_pylist()
    tools = [tool for record in records for tool in json.loads(record["tools"])]
    assert len(records) == 8
    assert tools
    assert all(tool["status"] != "sandbox_error" for tool in tools)
    assert any(tool["status"] == "ok" and tool["output"] for tool in tools)
    assert any(record["reason"] == "correct" for record in records)


def test_evaluation_with_docker(tmp_path: Path, docker_sandbox_settings: DockerSandboxSettings) -> None:
    config = EvalConfig(
        **MACHINE, benchmarks=(Path("quickstart-held-out:8"),), out=tmp_path, samples=1, temperature=0.0
    )
    sandbox = DockerSandbox(docker_sandbox_settings)
    [scores] = run_evaluation(config, Console(file=io.StringIO()), sandbox=sandbox)
    assert (scores.problems, scores.samples) == (8, 1)
    assert scores.accuracy >= 0.6
    assert scores.flushes is not None
    assert scores.flushes >= 1
    assert (tmp_path / "report.html").is_file()
