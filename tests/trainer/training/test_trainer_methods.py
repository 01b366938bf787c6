"""Effects of methods and off-policy correction on the gradient of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from service.deferral.episode import Outcome
from service.deferral.policy import DeferralPolicy
from tests.trainer.training.test_trainer_lora import FixedRows, config, row
from trainer.training.chunked_lm_head import PolicyModel
from trainer.training.rollouts import Row
from trainer.training.trainer import IHGRPOTrainer

LONG = row([10, 20, 30, 40, 50, 60], 1.0)
SHORT = row([70, 80], -1.0)


def on_policy(checkpoint: Path, one: Row, *, shift: float = 0.0) -> Row:
    """The row as the model itself would have sampled it, off by ``shift`` in each token's log-prob."""
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ids = torch.tensor([[*one.sample.prompt_ids, *one.sample.ids]])
    targets = torch.tensor([[0] * 3 + [1] * len(one.sample.ids)]).bool()
    with torch.no_grad():
        found = PolicyModel(model)(ids, torch.ones_like(ids), targets, 0).log_probs + shift
    return replace(one, sample=replace(one.sample, logprobs=tuple(found.tolist())))


def run(
    run_dir: Path, checkpoint: Path, rows: Sequence[Row], **changes: object
) -> tuple[dict[str, Tensor], IHGRPOTrainer]:
    """Gradients of the first step, and the trainer."""
    settings = config(
        run_dir, checkpoint, **{"lora": None, "max_grad_norm": 1e9, "micro_batch_samples": 1, **changes}
    )
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    trainer = IHGRPOTrainer(
        model, tokenizer, settings, DeferralPolicy(max_episode_tokens=100), FixedRows(*rows)
    )
    gradients: dict[str, Tensor] = {}
    clip = trainer._clip_grad_norm

    def spy(model: torch.nn.Module) -> object:
        norm = clip(model)
        if not gradients:
            gradients.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        return norm

    trainer._clip_grad_norm = spy  # type: ignore[method-assign]
    trainer.train()
    return gradients, trainer


def scaled(gradients: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    return {name: gradient * factor for name, gradient in gradients.items()}


def summed(*parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-4)


def test_aggregations_weigh_tokens_samples_or_neither(tmp_path: Path, tiny_checkpoint: Path) -> None:
    long, short = (on_policy(tiny_checkpoint, one) for one in (LONG, SHORT))
    mean_long, _ = run(tmp_path / "l", tiny_checkpoint, [long])
    mean_short, _ = run(tmp_path / "s", tiny_checkpoint, [short])
    tokens, _ = run(tmp_path / "t", tiny_checkpoint, [long, short], aggregation="token-mean")
    close(tokens, summed(scaled(mean_long, 6 / 8), scaled(mean_short, 2 / 8)))
    samples, _ = run(tmp_path / "m", tiny_checkpoint, [long, short], aggregation="sample-mean")
    close(samples, summed(scaled(mean_long, 1 / 2), scaled(mean_short, 1 / 2)))
    constant, _ = run(tmp_path / "c", tiny_checkpoint, [long, short], aggregation="constant")
    close(constant, scaled(tokens, 8 / (2 * 100)))


@pytest.mark.parametrize("updates", [1, 2])
def test_importance_weights_scale_the_gradient(tmp_path: Path, tiny_checkpoint: Path, updates: int) -> None:
    """With and without a separate forward pass for the trainer's log-probs."""
    sizes = {"mini_batch_samples": 4 // updates, "steps": updates, "save_every": updates}
    plain_rows = [on_policy(tiny_checkpoint, one) for one in (LONG, SHORT, LONG, SHORT)]
    rows = [on_policy(tiny_checkpoint, one, shift=-math.log(1.5)) for one in (LONG, SHORT, LONG, SHORT)]
    plain, _ = run(tmp_path / "a", tiny_checkpoint, plain_rows, **sizes)
    weighted, trainer = run(
        tmp_path / "b", tiny_checkpoint, rows, off_policy={"weights": "token_truncate"}, **sizes
    )
    close(weighted, scaled(plain, 1.5))
    table = {"weights": "token_truncate", "max_weight": 1.2}
    cut, _ = run(tmp_path / "c", tiny_checkpoint, rows, off_policy=table, **sizes)
    close(cut, scaled(plain, 1.2))
    log = trainer.state.log_history[0]
    assert log["mismatch/k1"] == pytest.approx(-math.log(1.5), abs=1e-4)
    assert log["mismatch/ratio_p50"] == pytest.approx(1.5, abs=1e-3)
    assert log["mismatch/perplexity_gap"] == pytest.approx(-math.log(1.5), abs=1e-4)


def test_without_correction_the_ratio_is_clipped_instead(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """1.5 is above 1 + clip_high, so tokens with a positive advantage have no gradient."""
    rows = [on_policy(tiny_checkpoint, LONG, shift=-math.log(1.5))]
    gradients, trainer = run(tmp_path, tiny_checkpoint, rows, method="simpletir")
    assert all(float(gradient.abs().max()) == 0 for gradient in gradients.values())
    assert trainer.state.log_history[0]["clip_fraction"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "settings",
    [{"weights": "token_mask"}, {"weights": "sequence_mask"}, {"max_drift": 0.5}, {"veto_below": 0.4}],
)
def test_rejected_samples_leave_no_trace(
    tmp_path: Path, tiny_checkpoint: Path, settings: dict[str, object]
) -> None:
    """Neither in the sum nor in what it is divided by."""
    good = on_policy(tiny_checkpoint, LONG)
    shift = -3.0 if settings.get("weights") else 1.0
    rejected = on_policy(tiny_checkpoint, SHORT, shift=shift)
    alone, _ = run(tmp_path / "a", tiny_checkpoint, [good])
    both, trainer = run(tmp_path / "b", tiny_checkpoint, [good, rejected], off_policy=settings)
    close(both, alone)
    log = trainer.state.log_history[0]
    assert log["samples/rejected_tokens"] == pytest.approx(2 / 8)
    # The curves of the mismatch include them.
    assert log["mismatch/k1"] == pytest.approx(shift * 2 / 8, abs=1e-4)
    extreme = "ratio_max" if shift < 0 else "ratio_min"
    assert log[f"mismatch/{extreme}"] == pytest.approx(math.exp(-shift), rel=1e-3)


def test_mismatch_is_measured_over_all_processes(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a second process had a sample of two tokens with the ratio 4, and less tokens than this one."""
    other = torch.tensor([[-1.0, -1.0 - math.log(4), 9.0]] * 2 + [[-1.0, -1.0, -1.0]] * 4)

    def gather(_: Accelerator, tensor: Tensor) -> Tensor:
        return torch.cat([tensor, other]) if tensor.shape[1:] == (3,) else tensor

    monkeypatch.setattr(Accelerator, "gather", gather)
    _, trainer = run(tmp_path, tiny_checkpoint, [on_policy(tiny_checkpoint, LONG, shift=-math.log(1.5))])
    log = trainer.state.log_history[0]
    ratios = torch.tensor([1.5] * 6 + [4.0] * 2)
    k3 = float((ratios - 1 - ratios.log()).mean())
    found = [log[f"mismatch/{name}"] for name in ("k1", "k3", "ratio_min", "ratio_p50", "ratio_max")]
    assert found == pytest.approx([-float(ratios.log().mean()), k3, 1.5, 1.5, 4.0], rel=1e-3)
    assert log["mismatch/perplexity_gap"] == pytest.approx(-(math.log(1.5) + math.log(4)) / 2, rel=1e-3)


def test_void_samples_are_trained_on_only_without_their_mask(tmp_path: Path, tiny_checkpoint: Path) -> None:
    void = replace(SHORT, sample=replace(SHORT.sample, outcome=Outcome.VOID))
    masked, trainer = run(tmp_path / "a", tiny_checkpoint, [void])
    assert masked == {}
    assert trainer.skipped_steps == 1
    trained, _ = run(tmp_path / "b", tiny_checkpoint, [replace(void, train_void=True)])
    expected, _ = run(tmp_path / "c", tiny_checkpoint, [SHORT])
    close(trained, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_corrections_and_kl_train_together(tmp_path: Path, tiny_checkpoint: Path, dtype: str) -> None:
    rows = [on_policy(tiny_checkpoint, one) for one in (LONG, SHORT, LONG, SHORT)]
    _, trainer = run(
        tmp_path, tiny_checkpoint, rows, dtype=dtype, steps=2, save_every=2, mini_batch_samples=2,
        aggregation="sample-mean", kl_weight=0.01,
        off_policy={"weights": "token_mask", "max_drift": 0.5, "veto_below": 1e-4},
    )  # fmt: skip
    assert trainer.skipped_steps == 0
    assert all(math.isfinite(entry.get("loss", 0.0)) for entry in trainer.state.log_history)
