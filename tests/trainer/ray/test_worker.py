"""Runs on a real Ray cluster with two nodes on this machine."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster
from rich.console import Console
from torch import Tensor

from service.engines.base import EngineError
from service.engines.checkpoint import quickstart
from trainer.ray.worker import RayRolloutWorker, connected
from trainer.training.config import RayConfig, TrainConfig
from trainer.training.run import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
    # Ray keeps files and processes until the end of the process.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]


GIVEN = ("problem_id", "seed", "prompt_ids")
PLAYED = ("ids", "mask", "outcome", "reward")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Ray cluster of two nodes. Only the second one, without the driver, can run episodes."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=4, resources={"play": 2})
    yield cluster.address
    cluster.shutdown()


def run(run_dir: Path, **changes: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the episodes of a run of two steps, and the log."""
    values: dict[str, Any] = {
        "model": str(quickstart()), "data": ("quickstart:20",), "run_dir": run_dir, "steps": 2, "seed": 1,
        "prompts_per_step": 2, "group_size": 4, "min_valid_samples": 2, "min_group_std": 0.0,
        "oversample": 1.0, "micro_batch_samples": 4, "temperature": 2.0, "learning_rate": 1e-3,
        "dtype": "float32", "save_every": 2, "tensorboard": False, "device": "cpu", "threads": 1,
        "engine_slots": 8, "max_concurrent_episodes": 8, "sandbox": "process", "max_containers": 2,
        "policy": {"max_turn_tokens": 256, "max_episode_tokens": 1024},
    }  # fmt: skip
    config = TrainConfig.model_validate({**values, **changes})
    checkpoint = train(config, Console(file=io.StringIO()))
    paths = sorted((run_dir / "rollouts").iterdir())
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    return rows, json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]


@pytest.mark.long
def test_run_with_killed_actor_equals_run_in_one_process(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[list[int]] = []
    push = RayRolloutWorker.push

    async def push_and_kill(self: RayRolloutWorker, index: int, weights: Mapping[str, Tensor]) -> None:
        await push(self, index, weights)

        def kill() -> None:
            os.kill(self.pids[0], signal.SIGKILL)
            killed.append(self.busy)

        if index == 0:
            threading.Timer(1.0, kill).start()

    monkeypatch.setattr(RayRolloutWorker, "push", push_and_kill)
    here, _ = run(tmp_path / "here")
    ours = {"address": address, "rollout_actors": 2, "resources": {"play": 1}, "reward_actors": 1}
    there, history = run(tmp_path / "there", ray={**ours, "reward_workers": 1})
    assert killed == [[0, 1]]
    assert len(there) == 16
    assert {row["reward"] for row in there} == {0, 1}
    assert history[0]["grad_norm"] > 0
    # The second step's episodes were sampled with the trainer's weights.
    assert max(entry["logprob_gap"] for entry in history[:2]) < 1e-4
    pairs = list(zip(here, there, strict=True))
    for one, other in pairs:
        assert [other[name] for name in GIVEN] == [one[name] for name in GIVEN]
    # Batches round differently, so a draw at the border between two tokens may give the other one.
    same = [all(other[name] == one[name] for name in PLAYED) for one, other in pairs]
    steps = (
        [slice(0, 8), slice(8, 16)] if all(same[:8]) else [slice(0, 8)]
    )  # otherwise the next weights differ
    for step in steps:
        assert sum(same[step]) >= 6
        for (one, other), alike in zip(pairs[step], same[step], strict=True):
            if alike:
                assert other["logprobs"] == pytest.approx(one["logprobs"], abs=1e-4)


async def test_reports_cluster_without_resources(address: str) -> None:
    config = TrainConfig(
        model=str(quickstart()), data=("quickstart:2",), run_dir=Path("unused"),
        ray=RayConfig(address=address, resources={"no-such": 1}, start_timeout_s=1),
    )  # fmt: skip
    with connected(RayConfig(address=address)):
        worker = RayRolloutWorker(config, config.resolve_policy(quickstart()))
        with pytest.raises(EngineError, match=r"did not place and start 1 rollout actors in 1 s"):
            await worker.start()
        await worker.stop()
