"""Complete runs of a tiny model on a learnable task, with the real engine, reward and trainer."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import constants
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from service.deferral.policy import DeferralPolicy
from service.engines import adapters
from service.engines.checkpoint import CheckpointError
from service.engines.model_lookup import locate
from tests.support.fake_hub import FakeHub, serve_hub
from tests.support.peft_adapters import make_adapter
from tests.support.toy_task import GOLD, POLICY, QUESTION, toy_sandbox
from trainer.training.checkpoints import latest
from trainer.training.config import ConfigError, TrainConfig
from trainer.training.rollout_queue import QueueState
from trainer.training.run import train
from trainer.training.run_info import read_history, read_info
from trainer.training.trainer import IHGRPOTrainer

ROOT = Path(__file__).parents[3]


def config(run_dir: Path, checkpoint: Path, **changes: object) -> TrainConfig:
    data = run_dir.parent / "problems.jsonl"
    data.write_text(json.dumps({"question": QUESTION, "answer": GOLD}) + "\n")
    values: dict[str, object] = {
        "model": str(checkpoint), "data": [str(data)], "run_dir": run_dir, "steps": 4, "prompts_per_step": 4,
        "group_size": 4, "min_valid_samples": 2, "oversample": 1.5, "micro_batch_samples": 16,
        "learning_rate": 1e-3, "dtype": "float32", "device": "cpu", "threads": 1, "engine_slots": 16,
        "save_every": 2, "tensorboard": False,
    }  # fmt: skip
    return TrainConfig.model_validate({**values, **changes})


def rewards(run_dir: Path) -> list[float]:
    tables = [pq.read_table(path).to_pydict() for path in sorted((run_dir / "rollouts").iterdir())]
    return [sum(table["reward"]) / len(table["reward"]) for table in tables]


def run(settings: TrainConfig) -> tuple[Path, str]:
    console = Console(file=io.StringIO(), width=200)
    return train(settings, console, sandbox=toy_sandbox()), console.file.getvalue()  # type: ignore[attr-defined]


def moving_averages(curve: list[float]) -> list[float]:
    """Average each reward with the two after it."""
    return [sum(curve[step : step + 3]) / 3 for step in range(len(curve) - 2)]


def test_an_adapter_learns_and_its_samples_are_the_trainers(tmp_path: Path, toy_checkpoint: Path) -> None:
    """The engine samples with merged weights, the trainer computes with the adapter."""
    settings = config(
        tmp_path / "run", toy_checkpoint, steps=20, save_every=20, group_size=8, engine_slots=32,
        learning_rate=1e-2, lora={"rank": 8, "marker_lr": 1e-3},
    )  # fmt: skip
    checkpoint, text = run(settings)
    assert "row of <tool_call>" in text
    curve = rewards(settings.run_dir)
    averages = moving_averages(curve)
    assert max(averages) > averages[0] + 0.15
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    # A step whose groups are all filtered out compares nothing.
    compared = [entry for entry in history if "logprob_gap" in entry]
    assert len(compared) > 10
    assert max(entry["logprob_gap"] for entry in compared) < 1e-4
    assert max(entry["mismatch/k3"] for entry in compared) < 1e-6
    assert not (checkpoint / "model.safetensors").exists()
    assert (checkpoint / "adapter_model.safetensors").stat().st_size < 200_000
    assert DeferralPolicy.load(checkpoint) == POLICY


def test_an_adapter_of_another_base_is_rejected(tmp_path: Path, toy_checkpoint: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "base.json").write_text('{"sha256": "0000"}')
    with pytest.raises(ValueError, match="was trained on another base, with the fingerprint 0000"):
        run(config(tmp_path / "run", toy_checkpoint, lora={"adapter": tmp_path / "adapter"}))


def test_an_adapter_is_merged_and_trained_on(tmp_path: Path, toy_checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(toy_checkpoint)
    make_adapter(model, tmp_path / "adapter", base=Path("org/base"))
    POLICY.save(tmp_path / "adapter")
    with patch.object(adapters, "cache_dir", lambda: tmp_path / "cache"):
        final, _ = run(config(tmp_path / "run", tmp_path / "adapter", base=str(toy_checkpoint), steps=2))
        merged = locate(str(tmp_path / "adapter"), base=str(toy_checkpoint))
    after, before = (load_file(path / "model.safetensors") for path in (final, merged))
    plain = load_file(toy_checkpoint / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert (after[name] - before[name]).abs().max() < 0.1 * (plain[name] - before[name]).abs().max()


def test_an_adapter_resumes_exactly(tmp_path: Path, toy_checkpoint: Path) -> None:
    short = config(tmp_path / "run", toy_checkpoint, steps=2, lora={"rank": 4})
    run(short)
    longer = short.model_copy(update={"steps": 4})
    checkpoint, _ = run(longer)
    whole = config(tmp_path / "other", toy_checkpoint, steps=4, lora={"rank": 4})
    assert_same_run(whole, longer, run(whole)[0], checkpoint)


@pytest.mark.parametrize("method", ["eh-grpo", "grpo", "dapo", "dr-grpo", "simpletir"])
def test_every_baseline_trains(tmp_path: Path, toy_checkpoint: Path, method: str) -> None:
    settings = config(tmp_path / "run", toy_checkpoint, steps=2, method=method)
    checkpoint, _ = run(settings)
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    assert [entry["skipped_steps"] for entry in history if "skipped_steps" in entry] == [0.0, 0.0]
    assert any(entry.get("grad_norm", 0) > 0 for entry in history)


@pytest.mark.parametrize("method", ["ih-grpo", "grpo-immediate"])
def test_training_raises_reward(tmp_path: Path, toy_checkpoint: Path, method: str) -> None:
    settings = config(
        tmp_path / "run",
        toy_checkpoint,
        steps=12,
        save_every=12,
        group_size=8,
        engine_slots=32,
        method=method,
    )
    checkpoint, text = run(settings)
    curve = rewards(settings.run_dir)
    first, last = sum(curve[:3]) / 3, sum(curve[-3:]) / 3
    assert last > first + 0.15
    assert last > 0.75
    assert "step 1/12  reward" in text
    mode = "immediate" if method == "grpo-immediate" else "deferred"
    assert DeferralPolicy.load(checkpoint) == POLICY.model_copy(update={"mode": mode})
    assert json.loads((checkpoint / "config.json").read_text())["use_cache"] is True
    assert not (settings.run_dir / "README.md").exists()


def test_asynchronous_training_raises_reward_within_its_staleness(
    tmp_path: Path, toy_checkpoint: Path
) -> None:
    settings = config(
        tmp_path / "run", toy_checkpoint, steps=24, save_every=24, group_size=8, engine_slots=32,
        max_staleness=2, off_policy={"weights": "token_truncate"},
    )  # fmt: skip
    checkpoint, _ = run(settings)
    curve = rewards(settings.run_dir)
    assert len(curve) == 24
    averages = moving_averages(curve)
    assert max(averages) > averages[0]  # how much depends on how old the samples are, which timing decides
    ages = set()
    for index, path in enumerate(sorted((settings.run_dir / "rollouts").iterdir())):
        table = pq.read_table(path, columns=["versions", "mask"]).to_pydict()
        for versions, mask in zip(table["versions"], table["mask"], strict=True):
            ages |= {index - version for version, sampled in zip(versions, mask, strict=True) if sampled}
    assert min(ages) >= 0
    assert max(ages) == 2  # the first three rollouts start together
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    assert max(entry.get("async/staleness_max", 0) for entry in history) <= 2
    assert QueueState.load(checkpoint) == QueueState((), ())  # no rollout beyond the last step


def test_asynchronous_run_resumes_with_the_episodes_of_its_queue(
    tmp_path: Path, toy_checkpoint: Path
) -> None:
    class Stopped(IHGRPOTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            if self.state.global_step == 3:
                raise RuntimeError("stopped")
            return super().training_step(*args, **kwargs)

    settings = config(tmp_path / "run", toy_checkpoint, steps=6, oversample=1.0, max_staleness=2)
    with pytest.raises(RuntimeError, match="stopped"):
        train(settings, Console(file=io.StringIO()), sandbox=toy_sandbox(), trainer_class=Stopped)
    saved = latest(settings.run_dir / "checkpoints")
    assert saved == settings.run_dir / "checkpoints" / "checkpoint-2"
    queue = QueueState.load(saved)
    episodes = 2 * settings.rollout_samples  # rollouts 2 and 3 had been started
    assert len(queue.finished) + len(queue.running) == episodes
    checkpoint, text = run(settings)
    assert checkpoint.name == "checkpoint-6"
    assert f"{len(queue.finished)} finished episodes kept, {len(queue.running)} running ones started" in text
    names = sorted(path.name for path in (settings.run_dir / "rollouts").iterdir())
    assert names == [f"rollout-{index:06}.parquet" for index in range(6)]
    tables = [pq.read_table(settings.run_dir / "rollouts" / name).to_pydict() for name in names]
    by_seed = {
        seed: (ids, versions)
        for table in tables
        for seed, ids, versions in zip(table["seed"], table["ids"], table["versions"], strict=True)
    }
    assert len(by_seed) == 6 * settings.rollout_samples  # no episode is trained on twice
    for sample in queue.finished:
        assert by_seed[sample.seed] == (list(sample.ids), list(sample.versions))
    for seed in queue.running:
        assert {version for version in by_seed[seed][1] if version} <= {2, 3}


def test_full_disk_is_reported_and_leaves_no_partial_checkpoint(tmp_path: Path, toy_checkpoint: Path) -> None:
    settings = config(tmp_path / "run", toy_checkpoint, steps=1, save_every=1, save_rollouts=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # A limit on file sizes has the same effect as a full disk.
        size = (toy_checkpoint / "model.safetensors").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
        with pytest.raises(CheckpointError, match=r"cannot write .*checkpoint-1 .*: free some space"):
            run(settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((settings.run_dir / "checkpoints").iterdir())
    assert run(settings)[0].name == "checkpoint-1"


def test_finished_run_continues_with_more_steps(tmp_path: Path, toy_checkpoint: Path) -> None:
    short = config(tmp_path / "run", toy_checkpoint, steps=2)
    assert run(short)[0].name == "checkpoint-2"
    longer = short.model_copy(update={"steps": 4})
    checkpoint, text = run(longer)
    assert checkpoint.name == "checkpoint-4"
    assert "step 2/4" not in text
    assert "step 3/4" in text
    whole = config(tmp_path / "other", toy_checkpoint, steps=4)
    assert_same_run(whole, longer, run(whole)[0], checkpoint)


def test_rejects_resuming_with_other_settings(tmp_path: Path, toy_checkpoint: Path) -> None:
    settings = config(tmp_path / "run", toy_checkpoint, steps=2)
    run(settings)
    with pytest.raises(ConfigError, match=r"learning_rate is 0\.5, but the run in"):
        run(settings.model_copy(update={"learning_rate": 0.5}))


@pytest.mark.parametrize("changes", [{"lora": {"rank": 4}}, {"kl_weight": 0.1}], ids=["adapter", "kl"])
def test_rejects_resuming_with_another_base(
    tmp_path: Path, toy_checkpoint: Path, changes: dict[str, object]
) -> None:
    settings = config(tmp_path / "run", toy_checkpoint, steps=1, save_every=1, **changes)
    run(settings)
    moved = shutil.copytree(toy_checkpoint, tmp_path / "moved")
    run(settings.model_copy(update={"model": str(moved), "steps": 2}))
    weights = load_file(moved / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="model: its weights differ from those that the run in"):
        run(settings.model_copy(update={"model": str(moved), "steps": 3}))


def test_tensorboard_has_curves(tmp_path: Path, toy_checkpoint: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = config(tmp_path / "run", toy_checkpoint, steps=2, tensorboard=True)
    run(settings)
    events = EventAccumulator(str(settings.run_dir / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= {f"train/{name}" for name in ("reward", "delay_rate", "entropy", "loss", "groups/kept")}
    assert [scalar.step for scalar in events.Scalars("train/reward")] == [1, 2]


def test_a_run_with_own_rewards_from_the_working_directory(
    tmp_path: Path, toy_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rewards_of_this_run.py").write_text(
        "async def zero(episode, row, *, factor):\n    return factor * float('print(0)' in episode.text)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    settings = config(
        tmp_path / "run",
        toy_checkpoint,
        steps=12,
        save_every=12,
        group_size=8,
        rewards=[
            {"name": "exact_match", "weight": 0.0},
            {"name": "rewards_of_this_run:zero", "options": {"factor": 2.0}},
        ],
    )
    last, _ = run(settings)
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    assert sum(entry["rewards/zero"] for entry in history[-3:]) / 3 > history[0]["rewards/zero"] + 0.3
    assert all("rewards/exact_match/correct" in entry for entry in history[:1])
    assert all(entry["reward"] == pytest.approx(entry["rewards/zero"]) for entry in history)


def test_a_broken_reward_is_reported_before_the_model_is_loaded(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", tmp_path, rewards=[{"name": "no_such_module:f"}])
    with pytest.raises(ValueError, match=r"rewards\.0\.name: cannot import module 'no_such_module'"):
        run(settings)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_run_resumes_to_same_result(tmp_path: Path, toy_checkpoint: Path) -> None:
    whole = config(tmp_path / "whole", toy_checkpoint, steps=6)
    expected, _ = run(whole)
    killed = config(tmp_path / "killed", toy_checkpoint, steps=6)
    script = (
        "import sys; from rich.console import Console; from tests.support.toy_task import toy_sandbox\n"
        "from trainer.training.config import TrainConfig; from trainer.training.run import train\n"
        "train(TrainConfig.model_validate_json(sys.argv[1]), Console(stderr=True), sandbox=toy_sandbox())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, killed.model_dump_json()], cwd=ROOT) as process:
        # In the middle of step 4: after the checkpoint of step 2 and the rollout of step 4 (number 3).
        while not (killed.run_dir / "rollouts" / "rollout-000003.parquet").exists():
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert not (killed.run_dir / "checkpoints" / "checkpoint-6").exists()
    resumed, _ = run(killed)
    assert_same_run(whole, killed, expected, resumed)


def assert_same_run(
    one: TrainConfig, other: TrainConfig, checkpoint_one: Path, checkpoint_other: Path
) -> None:
    """Assert that both runs have the same tokens in every rollout and the same final weights."""
    names = sorted(path.name for path in (one.run_dir / "rollouts").iterdir())
    assert names == sorted(path.name for path in (other.run_dir / "rollouts").iterdir())
    for name in names:
        columns = ["seed", "ids", "reward", "advantage"]
        tables = [pq.read_table(c.run_dir / "rollouts" / name, columns=columns) for c in (one, other)]
        assert tables[0].to_pydict() == tables[1].to_pydict(), name
    name = "model.safetensors" if one.lora is None else "adapter_model.safetensors"
    weights = [load_file(path / name) for path in (checkpoint_one, checkpoint_other)]
    # Sums of floats differ in their last bits, and Adam divides a gradient by its own size. For the few
    # weights whose gradient is almost 0, the noise becomes a few thousandths of the learning rate (1e-3).
    torch.testing.assert_close(weights[0], weights[1], atol=5e-5, rtol=0)
    different = sum(int(((weights[0][key] - weights[1][key]).abs() > 1e-6).sum()) for key in weights[0])
    assert different <= 0.001 * sum(value.numel() for value in weights[0].values())


def log_of(checkpoint: Path, name: str) -> dict[int, float]:
    """Values of a metric by step, as transformers saved them in a checkpoint."""
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry[name] for entry in history if name in entry}


def test_schedule_on_resume_is_that_of_new_number_of_steps(tmp_path: Path, toy_checkpoint: Path) -> None:
    settings = config(tmp_path / "run", toy_checkpoint, steps=2, lr_schedule="linear", warmup_steps=1)
    first, _ = run(settings)
    assert log_of(first, "learning_rate") == pytest.approx({1: 5e-4, 2: 1e-3})
    second, text = run(settings.model_copy(update={"steps": 4}))
    whole = config(tmp_path / "whole", toy_checkpoint, steps=4, lr_schedule="linear", warmup_steps=1)
    uninterrupted = log_of(run(whole)[0], "learning_rate")
    assert uninterrupted == pytest.approx({1: 5e-4, 2: 1e-3, 3: 1e-3 * 2 / 3, 4: 1e-3 / 3})
    assert {
        step: rate for step, rate in log_of(second, "learning_rate").items() if step > 2
    } == pytest.approx({step: rate for step, rate in uninterrupted.items() if step > 2})
    assert "note: steps is 4, before it was 2: from here on the learning rate follows the linear" in text


def test_first_step_of_warm_up_changes_weights(tmp_path: Path, toy_checkpoint: Path) -> None:
    settings = config(
        tmp_path / "run", toy_checkpoint, steps=1, save_every=1, lr_schedule="linear", warmup_steps=1
    )
    trained = load_file(run(settings)[0] / "model.safetensors")
    before = load_file(toy_checkpoint / "model.safetensors")
    assert any(not torch.equal(trained[name], before[name]) for name in trained)


def test_validation_and_best_checkpoint(tmp_path: Path, toy_checkpoint: Path) -> None:
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text(json.dumps({"question": QUESTION, "answer": GOLD}) + "\n")
    settings = config(
        tmp_path / "run", toy_checkpoint, steps=6, keep_checkpoints=1,
        validation={"data": str(held_out), "every": 2, "samples": 16},
    )  # fmt: skip
    last, text = run(settings)
    accuracy = log_of(last, "eval_accuracy")
    assert sorted(accuracy) == [0, 2, 4, 6]
    assert sorted(log_of(last, "reward")) == [1, 2, 3, 4, 5, 6]
    best = max((2, 4, 6), key=lambda step: accuracy[step])
    directory = settings.run_dir / "checkpoints"
    assert (directory / "best").resolve().name == f"checkpoint-{best}"
    assert {path.name for path in directory.iterdir()} == {"best", f"checkpoint-{best}", "checkpoint-6"}
    assert f"best checkpoint: checkpoint-{best}, eval_accuracy {accuracy[best]:.3f}" in text
    for step in (0, 2, 4, 6):
        rows = pq.read_table(settings.run_dir / "validation" / f"step-{step:06}.parquet").to_pydict()
        assert sum(rows["reward"]) / 16 == accuracy[step]
    # Validation does not change what is trained on.
    without = config(tmp_path / "without", toy_checkpoint, steps=6)
    assert_same_run(settings, without, last, run(without)[0])


def test_metrics_file_has_each_step_once_after_resume(tmp_path: Path, toy_checkpoint: Path) -> None:
    settings = config(tmp_path / "run", toy_checkpoint, steps=2)
    run(settings)
    info = read_info(settings.run_dir)
    with (settings.run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "reward": 9.0}\n')  # of a killed process, after its last checkpoint
    run(settings.model_copy(update={"steps": 4}))
    history = read_history(settings.run_dir)
    assert [record["step"] for record in history] == [1, 2, 3, 4]
    assert history[2]["reward"] < 9
    again = read_info(settings.run_dir)
    assert info is not None
    assert again is not None
    assert again.wandb_id == info.wandb_id


def test_rejected_start_does_not_change_description(tmp_path: Path, toy_checkpoint: Path) -> None:
    settings = config(tmp_path / "run", toy_checkpoint, steps=2)
    run(settings)
    with pytest.raises(ConfigError, match="seed is 5"):
        run(settings.model_copy(update={"seed": 5}))
    info = read_info(settings.run_dir)
    assert info is not None
    assert info.recipe["seed"] == 0


def test_best_checkpoint_is_uploaded_at_the_end(tmp_path: Path, toy_checkpoint: Path) -> None:
    settings = config(tmp_path / "run", toy_checkpoint, steps=2, push_to="org/trained")
    with serve_hub(FakeHub({})) as hub, patch.object(constants, "ENDPOINT", hub.url):
        checkpoint, text = run(settings)
        assert f"uploaded to {hub.url}/org/trained" in text
        assert (
            hub.models["org/trained"]["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
        )
        hub.writable = False
        with pytest.raises(ConfigError, match="push_to: cannot write to org/trained"):
            run(settings.model_copy(update={"steps": 4}))
    assert latest(settings.run_dir / "checkpoints") == checkpoint
