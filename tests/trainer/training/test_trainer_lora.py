"""Reinforcement learning of an adapter, and KL to the policy at the start."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from service.deferral.episode import Outcome
from service.deferral.policy import DeferralPolicy
from service.engines.adapters import fingerprint, merged
from tests.support.tiny_qwen3 import make_checkpoint
from trainer.training.checkpoints import latest
from trainer.training.chunked_lm_head import PolicyModel
from trainer.training.config import ConfigError, TrainConfig
from trainer.training.episodes import Sample
from trainer.training.lora import attach_adapter
from trainer.training.rollouts import Means, RolloutBatch, Row
from trainer.training.trainer import IHGRPOTrainer


def config(run_dir: Path, checkpoint: Path, **changes: object) -> TrainConfig:
    values: dict[str, object] = {
        "model": str(checkpoint), "data": ["unused"], "run_dir": run_dir, "steps": 1, "prompts_per_step": 2,
        "group_size": 2, "min_valid_samples": 2, "micro_batch_samples": 2, "learning_rate": 1e-2,
        "dtype": "float32", "device": "cpu", "tensorboard": False, "weight_decay": 0.0,
        "lora": {"rank": 4},
    }  # fmt: skip
    return TrainConfig.model_validate({**values, **changes})


def row(ids: list[int], advantage: float) -> Row:
    sample = Sample(
        (1, 2, 3), tuple(ids), tuple(1 for _ in ids), tuple(-6.0 for _ in ids), "", Outcome.ANSWER, "1", (),
        seconds=0.0, seed=0,
    )  # fmt: skip
    return Row(sample, advantage)


class FixedRows:
    fingerprint = "fixed"

    def __init__(self, *rows: Row) -> None:
        self.rows = rows
        self.weights: list[dict[str, Tensor]] = []

    def collect(self, index: int, weights: Mapping[str, Tensor]) -> RolloutBatch:
        self.weights.append({name: tensor.clone() for name, tensor in weights.items()})
        return RolloutBatch(self.rows, Means())


def make_trainer(settings: TrainConfig, source: FixedRows) -> IHGRPOTrainer:
    dtype = torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(settings.model, dtype=dtype)
    tokenizer: Any = AutoTokenizer.from_pretrained(settings.model)
    if settings.lora is not None:
        marker_id = tokenizer.get_vocab()["<tool_call>"]
        model = attach_adapter(model, settings.lora, marker_id, seed=settings.seed)
    base = fingerprint(Path(settings.model))
    return IHGRPOTrainer(model, tokenizer, settings, DeferralPolicy(), source, base_fingerprint=base)


def log_prob(model: Any, one: Row) -> float:
    ids = torch.tensor([[*one.sample.prompt_ids, *one.sample.ids]])
    targets = torch.tensor([[0] * 3 + [1] * len(one.sample.ids)]).bool()
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    with torch.no_grad():
        return float(PolicyModel(base)(ids, torch.ones_like(ids), targets, 0).log_probs.sum())


GOOD = row([10, 20, 30, 40], 1.0)
BAD = row([50, 60], -1.0)


@pytest.mark.parametrize("tied", [True, False])
def test_a_step_moves_the_adapter_alone(tmp_path: Path, tied: bool) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", tie_word_embeddings=tied)
    source = FixedRows(GOOD, BAD)
    trainer = make_trainer(config(tmp_path / "run", checkpoint, steps=2, save_every=2), source)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    good, bad = log_prob(trainer.model, GOOD), log_prob(trainer.model, BAD)
    trainer.train()
    after = trainer.model.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved
    assert all(".lora_" in name or "trainable_tokens_delta" in name for name in moved)
    assert log_prob(trainer.model, GOOD) > good
    assert log_prob(trainer.model, BAD) < bad
    first, second = source.weights
    assert first.keys() == load_plain(checkpoint).keys()
    assert all(torch.equal(first[name], value) for name, value in load_plain(checkpoint).items())
    assert not torch.equal(
        first["model.layers.0.self_attn.q_proj.weight"], second["model.layers.0.self_attn.q_proj.weight"]
    )


def load_plain(checkpoint: Path) -> dict[str, Tensor]:
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    return dict(model.state_dict())


def test_the_checkpoint_is_an_adapter_that_a_server_merges(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    trainer = make_trainer(config(tmp_path / "run", checkpoint), FixedRows(GOOD, BAD))
    trainer.train()
    last = latest(tmp_path / "run" / "checkpoints")
    assert last is not None
    names = {path.name for path in last.iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "base.json", "deferral.json",
                     "tokenizer.json", "optimizer.pt", "run_state.json", "trainer_state.json"}  # fmt: skip
    assert not names & {"config.json", "model.safetensors", "README.md", "training_args.bin"}
    assert str(tmp_path) not in (last / "adapter_config.json").read_text()
    assert json.loads((last / "adapter_config.json").read_text())["base_model_name_or_path"] == ""
    served: Any = AutoModelForCausalLM.from_pretrained(merged(last, checkpoint), dtype=torch.float32)
    assert log_prob(served, GOOD) == pytest.approx(log_prob(trainer.model, GOOD), abs=1e-4)


def test_a_resumed_run_ends_as_one_that_was_not_cut_off(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    whole = config(tmp_path / "whole", checkpoint, steps=4, save_every=4)
    make_trainer(whole, FixedRows(GOOD, BAD)).train()
    cut = config(tmp_path / "cut", checkpoint, steps=2, save_every=2)
    make_trainer(cut, FixedRows(GOOD, BAD)).train()
    resumed = make_trainer(cut.model_copy(update={"steps": 4, "save_every": 4}), FixedRows(GOOD, BAD))
    resumed.train(resume_from_checkpoint=str(cut.run_dir / "checkpoints" / "checkpoint-2"))
    one, other = (
        load_file(run / "checkpoints" / "checkpoint-4" / "adapter_model.safetensors")
        for run in (whole.run_dir, cut.run_dir)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("tied", [True, False])
def test_checkpointed_activations_give_the_same_adapter_gradients(tmp_path: Path, tied: bool) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", tie_word_embeddings=tied)
    norms = []
    for checkpointing in (False, True):
        settings = config(
            tmp_path / str(checkpointing), checkpoint, gradient_checkpointing=checkpointing, dtype="bfloat16"
        )
        trainer = make_trainer(settings, FixedRows(GOOD, BAD))
        trainer.train()
        trained = [p for p in trainer.model.parameters() if p.requires_grad]
        assert {p.dtype for p in trained} == {torch.float32}
        norms.append(trainer.state.log_history[0]["grad_norm"])
    assert norms[0] > 0
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)


def test_the_markers_row_has_its_own_learning_rate(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    settings = config(
        tmp_path / "run", checkpoint, weight_decay=0.1, lora={"rank": 4, "marker_lr": 0.5}, learning_rate=0.25
    )
    trainer = make_trainer(settings, FixedRows(GOOD, BAD))
    optimizer = trainer.create_optimizer()
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.5]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert type(optimizer).__name__ == "AdamW"


@pytest.mark.parametrize("lora", [{"rank": 4}, None])
def test_kl_keeps_the_policy_near_its_start(tmp_path: Path, lora: dict[str, int] | None) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    start = log_prob(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32), GOOD)
    distances, divergences = [], []
    for weight in (0.0, 1e-9, 50.0):
        settings = config(
            tmp_path / str(weight), checkpoint, steps=6, save_every=6, lora=lora, kl_weight=weight,
            learning_rate=3e-3,
        )  # fmt: skip
        trainer = make_trainer(settings, FixedRows(GOOD, BAD))
        trainer.train()
        distances.append(abs(log_prob(trainer.model, GOOD) - start))
        divergences.append([e["reference_kl"] for e in trainer.state.log_history if "reference_kl" in e])
    assert divergences[0] == []
    assert divergences[1][0] == pytest.approx(0.0, abs=1e-6)
    assert divergences[1][-1] > 1e-3
    assert distances[1] == pytest.approx(distances[0], rel=0.02)
    assert distances[2] < 0.5 * distances[0]


def test_an_adapter_is_continued(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    make_trainer(config(tmp_path / "first", checkpoint), FixedRows(GOOD, BAD)).train()
    adapter = tmp_path / "first" / "checkpoints" / "checkpoint-1"
    source = FixedRows(GOOD, BAD)
    settings = config(tmp_path / "second", checkpoint, lora={"adapter": str(adapter)}, kl_weight=1e-9)
    trainer = make_trainer(settings, source)
    trainer.train()
    served = load_plain(merged(adapter, checkpoint))
    for name, value in served.items():
        torch.testing.assert_close(source.weights[0][name], value, atol=1e-6, rtol=1e-5)
    # The reference is the adapter as it was, not the bare model.
    assert trainer.state.log_history[0]["reference_kl"] == pytest.approx(0.0, abs=1e-6)


def test_an_adapter_is_not_resumed_as_a_whole_model(tmp_path: Path) -> None:
    from trainer.training.checkpoints import check_resumable

    checkpoint = make_checkpoint(tmp_path / "model")
    settings = config(tmp_path / "run", checkpoint)
    make_trainer(settings, FixedRows(GOOD, BAD)).train()
    last = tmp_path / "run" / "checkpoints" / "checkpoint-1"
    assert check_resumable(last, settings, "fixed") == 0
    with pytest.raises(ConfigError, match="lora is None, but the run"):
        check_resumable(last, settings.model_copy(update={"lora": None}), "fixed")
