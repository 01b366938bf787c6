"""Training on two CPU processes (gloo) equals training on one, with data parallelism and with FSDP2."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoConfig

from service.deferral.policy import DeferralPolicy
from service.engines.tokenizer import HFTokenizer
from service.engines.transformers.weight_loading import read_weights
from tests.support.toy_task import GOLD, POLICY, QUESTION, make_toy_checkpoint, toy_sandbox
from tests.support.train_process import Watched
from trainer.training.config import TrainConfig
from trainer.training.rollout_queue import QueueState
from trainer.training.run import train

ROOT = Path(__file__).parents[3]
ACCELERATE = ROOT / "recipes" / "accelerate"
DDP = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
FSDP2 = [
    sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ACCELERATE / "fsdp2.yaml"),
    "--num_processes", "2", "--main_process_port", "0",
]  # fmt: skip


def config(run_dir: Path, checkpoint: Path, **changes: object) -> TrainConfig:
    data = run_dir.parent / "problems.jsonl"
    data.write_text(4 * (json.dumps({"question": QUESTION, "answer": GOLD}) + "\n"))
    values: dict[str, object] = {
        "model": str(checkpoint), "data": [str(data)], "run_dir": run_dir, "steps": 2, "prompts_per_step": 4,
        "group_size": 4, "min_valid_samples": 2, "min_group_std": 0.0, "oversample": 1.0,
        "micro_batch_samples": 4, "learning_rate": 1e-3, "max_grad_norm": 1e9, "dtype": "float32",
        "device": "cpu", "threads": 1, "engine_slots": 16, "save_every": 1,
    }  # fmt: skip
    return TrainConfig.model_validate({**values, **changes})


def launch(command: list[str], settings: TrainConfig) -> str:
    """Return the output of the processes."""
    settings.run_dir.mkdir(exist_ok=True)
    recipe = settings.run_dir / "recipe.json"
    recipe.write_text(settings.model_dump_json())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = [str(ROOT / "tests" / "support" / "train_process.py"), str(recipe)]
    done = subprocess.run(
        [*command, *script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def run_alone(settings: TrainConfig) -> str:
    """Train in this process, and return its output."""
    console = Console(file=io.StringIO(), width=200)
    train(settings, console, sandbox=toy_sandbox(), trainer_class=Watched)
    return console.file.getvalue()  # type: ignore[attr-defined]


def log_history(settings: TrainConfig) -> list[dict[str, float]]:
    state = settings.run_dir / "checkpoints" / "checkpoint-2" / "trainer_state.json"
    history = json.loads(state.read_text())["log_history"]
    return [{name: entry[name] for name in ("loss", "reward", "entropy", "grad_norm")} for entry in history]


def rollouts(settings: TrainConfig, number: int) -> dict[int, tuple[list[int], float]]:
    """Return ids and advantage by seed, from the files of all processes."""
    found: dict[int, tuple[list[int], float]] = {}
    for path in (settings.run_dir / "rollouts").glob(f"rollout-{number:06}*"):
        table = pq.read_table(path, columns=["seed", "ids", "advantage"]).to_pylist()
        assert not found.keys() & {row["seed"] for row in table}
        found |= {row["seed"]: (row["ids"], row["advantage"]) for row in table}
    return found


def served_weights(checkpoint: Path) -> Mapping[str, torch.Tensor]:
    """Return the weights as a server loads them."""
    model = str(checkpoint)
    return read_weights(model, AutoConfig.from_pretrained(model), HFTokenizer(model), torch.float32)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, toy_checkpoint: Path) -> TrainConfig:
    settings = config(tmp_path_factory.mktemp("alone") / "run", toy_checkpoint)
    run_alone(settings)
    return settings


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("command", "changes"), [(DDP, {}), (FSDP2, {"gradient_checkpointing": True})], ids=["ddp", "fsdp2"]
)
def test_two_processes_match_one_process(
    tmp_path: Path, toy_checkpoint: Path, alone: TrainConfig, command: list[str], changes: dict[str, object]
) -> None:
    """The second step is a separate run, so that resuming from a checkpoint is tested too."""
    settings = config(tmp_path / "run", toy_checkpoint, **changes)
    output = launch(command, settings.model_copy(update={"steps": 1}))
    assert output.count("step 1/1") == 1
    output = launch(command, settings)
    assert (output.count("step 1/2"), output.count("step 2/2")) == (0, 1)

    for step in range(2):
        assert len(rollouts(settings, step)) == 16
        ours, theirs = (torch.load(c.run_dir / f"gradients-{step}.pt") for c in (settings, alone))
        assert max(float(gradient.abs().max()) for gradient in theirs.values()) > 1e-3
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
        assert rollouts(settings, step) == rollouts(alone, step)
    for one, other in zip(log_history(settings), log_history(alone), strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    names = [path.name for path in (settings.run_dir / "checkpoints").iterdir()]
    assert sorted(names) == ["best", "checkpoint-1", "checkpoint-2"]
    checkpoint = settings.run_dir / "checkpoints" / "checkpoint-2"
    assert DeferralPolicy.load(checkpoint) == POLICY
    weights, own = (served_weights(c.run_dir / "checkpoints" / "checkpoint-2") for c in (settings, alone))
    assert weights.keys() == own.keys()
    # AdamW divides by the gradient's size, so rounding errors of tiny gradients affect the weights.
    far = sum(int(((weights[name] - own[name]).abs() > 1e-5).sum()) for name in own)
    assert far < 0.01 * sum(weight.numel() for weight in own.values())
    assert len(list((settings.run_dir / "tensorboard").iterdir())) == 2  # one file per launch


@pytest.fixture(scope="module")
def adapter_alone(tmp_path_factory: pytest.TempPathFactory, toy_checkpoint: Path) -> TrainConfig:
    run_dir = tmp_path_factory.mktemp("adapter-alone") / "run"
    settings = config(run_dir, toy_checkpoint, lora={"rank": 4}, tensorboard=False)
    run_alone(settings)
    return settings


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("command", [DDP, FSDP2], ids=["ddp", "fsdp2"])
def test_two_processes_train_the_same_adapter(
    tmp_path: Path, toy_checkpoint: Path, adapter_alone: TrainConfig, command: list[str]
) -> None:
    alone = adapter_alone
    settings = config(tmp_path / "two", toy_checkpoint, lora={"rank": 4}, tensorboard=False)
    launch(command, settings.model_copy(update={"steps": 1}))
    launch(command, settings)
    for step in range(2):
        ours, theirs = (torch.load(c.run_dir / f"gradients-{step}.pt") for c in (settings, alone))
        assert ours.keys() == theirs.keys()
        assert max(float(gradient.abs().max()) for gradient in theirs.values()) > 1e-4
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
        assert rollouts(settings, step) == rollouts(alone, step)
    adapters = [
        load_file(c.run_dir / "checkpoints" / "checkpoint-2" / "adapter_model.safetensors")
        for c in (settings, alone)
    ]
    assert adapters[0].keys() == adapters[1].keys()
    assert {tensor.dtype for tensor in adapters[0].values()} == {torch.float32}
    far = sum(int(((adapters[0][name] - own).abs() > 1e-5).sum()) for name, own in adapters[1].items())
    assert far < 0.01 * sum(own.numel() for own in adapters[1].values())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_divergence_of_an_adapter_under_fsdp2(tmp_path: Path, toy_checkpoint: Path) -> None:
    alone, settings = (
        config(tmp_path / name, toy_checkpoint, lora={"rank": 4}, tensorboard=False, kl_weight=1.0)
        for name in ("alone", "two")
    )
    run_alone(alone)
    launch(FSDP2, settings)
    curves = []
    for run in (alone, settings):
        state = json.loads((run.run_dir / "checkpoints" / "checkpoint-2" / "trainer_state.json").read_text())
        curves.append([entry["reference_kl"] for entry in state["log_history"] if "reference_kl" in entry])
        if run is settings:
            ours, theirs = (torch.load(c.run_dir / "gradients-1.pt") for c in (settings, alone))
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert curves[0][0] == pytest.approx(0.0, abs=1e-7)
    assert curves[0][1] > 1e-7
    assert curves[1] == pytest.approx(curves[0], rel=0.01, abs=1e-7)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "changes", [{"lora": {"rank": 4}}, {}], ids=["adapter-of-untied-model", "all-weights"]
)
def test_fsdp2_in_bfloat16_matches_one_process(tmp_path: Path, changes: dict[str, object]) -> None:
    checkpoint = make_toy_checkpoint(tmp_path / "toy", tie_word_embeddings=not changes)
    alone, settings = (
        config(
            tmp_path / name, checkpoint, dtype="bfloat16", steps=1, tensorboard=False, mask_void=False,
            **changes,
        )
        for name in ("alone", "two")
    )  # fmt: skip
    run_alone(alone)
    launch(FSDP2, settings)
    ours, theirs = (torch.load(c.run_dir / "gradients-0.pt") for c in (settings, alone))
    assert ours.keys() == theirs.keys()
    assert {gradient.dtype for gradient in ours.values()} == {torch.float32}
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 0.05 * gradient.norm(), name


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_other_number_of_processes_is_reported_on_resume(tmp_path: Path, toy_checkpoint: Path) -> None:
    validation = {"data": str(tmp_path / "problems.jsonl"), "every": 1, "samples": 2}
    settings = config(tmp_path / "run", toy_checkpoint, tensorboard=False, validation=validation)
    launch(DDP, settings.model_copy(update={"steps": 1}))
    output = run_alone(settings)
    assert "note: the run used 2 training processes and resumes on 1: from here on the problems are" in output
    # Two processes validate one half of the problems each, and both halves count.
    for step, files in ((0, 2), (1, 2), (2, 1)):
        paths = list((settings.run_dir / "validation").glob(f"step-{step:06}*"))
        rows = [row for path in paths for row in pq.read_table(path, columns=["reward"]).to_pylist()]
        assert (len(paths), len(rows)) == (files, 8)
        mean = sum(row["reward"] for row in rows) / 8
        records = (settings.run_dir / "metrics.jsonl").read_text().splitlines()
        found = [record for record in map(json.loads, records) if "eval_accuracy" in record]
        assert [r["eval_accuracy"] for r in found if r["step"] == step] == pytest.approx([mean])


@pytest.mark.parametrize("path", sorted(ACCELERATE.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_configs_are_valid(path: Path) -> None:
    loaded = load_config_from_file(str(path))
    assert loaded.num_processes == 8 * loaded.num_machines
    raw = yaml.safe_load(path.read_text())
    assert loaded.distributed_type == raw["distributed_type"]
    if raw["distributed_type"] == "FSDP":
        assert loaded.fsdp_config["fsdp_version"] == 2
        assert loaded.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_asynchronous_rollouts_on_two_processes(tmp_path: Path, toy_checkpoint: Path) -> None:
    """Each process has its own queue. The last two steps are a separate run."""
    settings = config(tmp_path / "run", toy_checkpoint, steps=4, save_every=2, max_staleness=1)
    launch(DDP, settings.model_copy(update={"steps": 3, "save_every": 1}))
    checkpoints = settings.run_dir / "checkpoints"
    shutil.rmtree(checkpoints / "checkpoint-3")
    names = {path.name for path in (checkpoints / "checkpoint-2").glob("rollout_queue-*")}
    assert names == {"rollout_queue-0.json.gz", "rollout_queue-1.json.gz"}
    queue = QueueState.load(checkpoints / "checkpoint-2")
    seeds = {*(sample.seed for sample in queue.finished), *queue.running}
    assert len(seeds) == 16  # rollout 2
    output = launch(DDP, settings)
    assert output.count("finished episodes kept") == 1
    assert set(rollouts(settings, 2)) == seeds
    for sample in queue.finished:
        assert rollouts(settings, 2)[sample.seed][0] == list(sample.ids)
    for number in range(4):
        assert len(rollouts(settings, number)) == 16
    assert QueueState.load(checkpoints / "checkpoint-4") == QueueState((), ())
