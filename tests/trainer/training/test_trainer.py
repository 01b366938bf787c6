from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from service.deferral.episode import Outcome
from service.deferral.policy import DeferralPolicy
from trainer.training.checkpoints import latest
from trainer.training.chunked_lm_head import PolicyModel
from trainer.training.config import ConfigError, TrainConfig
from trainer.training.episodes import Sample
from trainer.training.rollouts import Means, RolloutBatch, Row
from trainer.training.trainer import IHGRPOTrainer


def config(run_dir: Path, checkpoint: Path, **changes: object) -> TrainConfig:
    values: dict[str, object] = {
        "model": str(checkpoint), "data": ["unused"], "run_dir": run_dir, "steps": 1, "prompts_per_step": 2,
        "group_size": 2, "min_valid_samples": 2, "micro_batch_samples": 2, "learning_rate": 1e-3,
        "dtype": "float32", "device": "cpu", "tensorboard": False, "weight_decay": 0.0,
    }  # fmt: skip
    return TrainConfig.model_validate({**values, **changes})


def row(
    ids: list[int], advantage: float, *, logprob: float = -6.0, prompt: tuple[int, ...] = (1, 2, 3)
) -> Row:
    sampled = tuple(1 for _ in ids)
    sample = Sample(
        prompt,
        tuple(ids),
        sampled,
        tuple(logprob for _ in ids),
        "",
        Outcome.ANSWER,
        "1",
        (),
        seconds=0.0,
        seed=0,
    )
    return Row(sample, advantage)


class FixedRows:
    """Source that returns the same rows each time and records the weights."""

    fingerprint = "fixed"

    def __init__(self, *rows: Row) -> None:
        self._rows = rows
        self.weights: list[dict[str, Tensor]] = []
        self.indices: list[int] = []

    def collect(self, index: int, weights: Mapping[str, Tensor]) -> RolloutBatch:
        self.indices.append(index)
        self.weights.append({name: tensor.clone() for name, tensor in weights.items()})
        metrics = Means()
        metrics.add("reward", 1.0, 2.0)
        return RolloutBatch(self._rows, metrics)


def make_trainer(settings: TrainConfig, source: FixedRows) -> IHGRPOTrainer:
    model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    return IHGRPOTrainer(model, tokenizer, settings, DeferralPolicy(), source)


def log_probs(model: torch.nn.Module, sample: Sample) -> Tensor:
    ids = torch.tensor([[*sample.prompt_ids, *sample.ids]])
    targets = torch.tensor([[0] * len(sample.prompt_ids) + list(sample.mask)]).bool()
    with torch.no_grad():
        return PolicyModel(model)(ids, torch.ones_like(ids), targets, 0).log_probs


GOOD = row([10, 20, 30, 40], 1.0)
BAD = row([50, 60], -1.0)


def test_step_raises_good_samples_and_lowers_bad_ones(tmp_path: Path, tiny_checkpoint: Path) -> None:
    trainer = make_trainer(config(tmp_path, tiny_checkpoint), FixedRows(GOOD, BAD))
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    good, bad = log_probs(trainer.model, GOOD.sample).sum(), log_probs(trainer.model, BAD.sample).sum()
    trainer.train()
    moved = [
        name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])
    ]
    assert set(moved) == set(before)
    assert log_probs(trainer.model, GOOD.sample).sum() > good
    assert log_probs(trainer.model, BAD.sample).sum() < bad


def test_micro_batches_do_not_change_the_result(tmp_path: Path, tiny_checkpoint: Path) -> None:
    rows = (GOOD, BAD, row([70, 80, 90], 0.5), row([5], -0.5, prompt=(9,) * 20))
    results = []
    for size in (1, 2, 4):
        trainer = make_trainer(
            config(tmp_path / str(size), tiny_checkpoint, micro_batch_samples=size, max_grad_norm=1e9),
            FixedRows(*rows),
        )
        gradients: dict[str, Tensor] = {}
        clip = trainer._clip_grad_norm

        def spy(model: torch.nn.Module, clip=clip, gradients=gradients) -> object:  # type: ignore[no-untyped-def]
            norm = clip(model)
            gradients.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
            return norm

        trainer._clip_grad_norm = spy  # type: ignore[method-assign]
        trainer.train()
        results.append(gradients)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], atol=1e-6, rtol=1e-4)


def test_each_rollout_gets_number_and_new_weights(tmp_path: Path, tiny_checkpoint: Path) -> None:
    source = FixedRows(GOOD, BAD)
    make_trainer(config(tmp_path, tiny_checkpoint, steps=3, save_every=3), source).train()
    assert source.indices == [0, 1, 2]
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(source.weights[0][name], source.weights[1][name])


def test_several_updates_use_one_rollout(tmp_path: Path, tiny_checkpoint: Path) -> None:
    source = FixedRows(GOOD, BAD, GOOD, BAD)
    settings = config(
        tmp_path, tiny_checkpoint, steps=4, save_every=4, mini_batch_samples=2, micro_batch_samples=1
    )
    trainer = make_trainer(settings, source)
    trainer.train()
    assert source.indices == [0, 1]
    assert trainer.state.global_step == 4


@pytest.mark.parametrize("rows", [(), (row([10, 20], math.nan), BAD)], ids=["no rows", "a NaN"])
def test_step_without_usable_gradient_is_skipped(
    tmp_path: Path, tiny_checkpoint: Path, rows: tuple[Row, ...]
) -> None:
    class ThenGood(FixedRows):
        def collect(self, index: int, weights: Mapping[str, Tensor]) -> RolloutBatch:
            self._rows = (GOOD, BAD) if index == 0 else rows
            return super().collect(index, weights)

    source = ThenGood()
    # Momentum from step 0 would change the weights in step 1 if gradients were zero instead of None.
    trainer = make_trainer(config(tmp_path, tiny_checkpoint, steps=3, save_every=3, weight_decay=0.1), source)
    trainer.train()
    assert trainer.skipped_steps == 2
    torch.testing.assert_close(source.weights[1], source.weights[2], rtol=0, atol=0)
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())


def test_checkpoint_has_all_files_for_serving(tmp_path: Path, tiny_checkpoint: Path) -> None:
    trainer = make_trainer(config(tmp_path, tiny_checkpoint), FixedRows(GOOD, BAD))
    trainer.train()
    checkpoint = latest(tmp_path / "checkpoints")
    assert checkpoint == tmp_path / "checkpoints" / "checkpoint-1"
    names = {path.name for path in checkpoint.iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
        "deferral.json",
    }
    assert "training_args.bin" not in names
    assert DeferralPolicy.load(checkpoint) == DeferralPolicy()
    served = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    torch.testing.assert_close(served.state_dict(), trainer.model.state_dict(), rtol=0, atol=0)


def test_rejects_tokenizer_without_marker(tmp_path: Path, tiny_checkpoint: Path) -> None:
    settings = config(tmp_path, tiny_checkpoint)
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    with pytest.raises(ConfigError, match="no token '<run>'"):
        IHGRPOTrainer(model, tokenizer, settings, DeferralPolicy(marker="<run>"), FixedRows())
