"""The loss compared with reference implementations from the definitions, and its numerical edge cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.training import loss as loss_module
from trainer.training.loss import IHGRPOLoss, ih_grpo_loss

VOCAB, MARKER = 17, 5


def batch(seed: int = 0, shape: tuple[int, int] = (4, 6), *, scale: float = 2.0) -> dict[str, Tensor]:
    """Return random logits, sampled ids (marker and others), advantages of both signs and a mask."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, shape, generator=g)
    ids[:, ::3] = MARKER
    return {
        "logits": torch.randn(*shape, VOCAB, generator=g, dtype=torch.float64) * scale,
        "ids": ids,
        "advantages": torch.randn(shape[0], generator=g, dtype=torch.float64),
        "mask": torch.rand(shape, generator=g) > 0.2,
    }


def inputs(b: dict[str, Tensor], old: Tensor | None = None) -> dict[str, Any]:
    log_probs = b["logits"].log_softmax(-1)
    sampled = log_probs.gather(-1, b["ids"][..., None])[..., 0]
    return {
        "log_probs": sampled,
        "old_log_probs": sampled.detach() if old is None else old,
        "execute_log_probs": log_probs[..., MARKER],
        "execute_logits": b["logits"][..., MARKER],
        "advantages": b["advantages"],
        "is_execute": b["ids"] == MARKER,
        "mask": b["mask"],
    }


def explicit_log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the two-level policy: a separate decision logit, and a softmax without the marker.

    The decision logit is ``z_x - logZ`` with logZ constant, so the two levels share no gradient.
    """
    writing = logits.clone()
    writing[..., MARKER] = -torch.inf
    decision = logits[..., MARKER] - writing.detach().logsumexp(-1)
    low_level = writing.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    execute = torch.nn.functional.logsigmoid(decision)
    write = torch.nn.functional.logsigmoid(-decision) + low_level
    return torch.where(ids == MARKER, execute, write)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["marker", "ordinary", "mixed"])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_weight_one_matches_explicit_policy_gradient(seed: int, kind: str, sign: float) -> None:
    b = batch(seed)
    b["advantages"] = b["advantages"].abs() * sign
    if kind == "marker":
        b["ids"].fill_(MARKER)
    elif kind == "ordinary":
        b["ids"][b["ids"] == MARKER] = MARKER + 1
    b["logits"].requires_grad_()
    ih_grpo_loss(**inputs(b), hierarchy_weight=1.0).loss.backward()
    implicit = b["logits"].grad

    logits = b["logits"].detach().requires_grad_()
    log_probs = explicit_log_probs(logits, b["ids"])
    torch.testing.assert_close(log_probs.detach(), inputs(b)["log_probs"].detach(), atol=1e-12, rtol=0)
    ratio = (log_probs - log_probs.detach()).exp()
    (-(ratio * b["advantages"][:, None])[b["mask"]].mean()).backward()

    assert implicit is not None
    assert logits.grad is not None
    assert logits.grad.abs().max() > 1e-3
    torch.testing.assert_close(implicit, logits.grad, atol=1e-9, rtol=0)


def test_weight_one_holds_off_policy_inside_clip_range() -> None:
    b = batch(3)
    b["logits"].requires_grad_()
    old = inputs(b)["log_probs"].detach() - 0.1
    ih_grpo_loss(**inputs(b, old), hierarchy_weight=1.0).loss.backward()
    logits = b["logits"].detach().requires_grad_()
    ratio = (explicit_log_probs(logits, b["ids"]) - old).exp()
    (-(ratio * b["advantages"][:, None])[b["mask"]].mean()).backward()
    torch.testing.assert_close(b["logits"].grad, logits.grad, atol=1e-9, rtol=0)


def test_decision_gradient_affects_only_marker_logit() -> None:
    b = batch(1)
    b["ids"].fill_(MARKER)
    b["logits"].requires_grad_()
    ih_grpo_loss(**inputs(b), hierarchy_weight=1.0).loss.backward()
    gradient = b["logits"].grad
    assert gradient is not None
    others = gradient.clone()
    others[..., MARKER] = 0
    assert others.abs().max() < 1e-12
    assert gradient[..., MARKER].abs().max() > 1e-3


def test_marker_gradient_matches_finite_differences() -> None:
    """The surrogate must have the gradient of the explicit policy with logZ constant."""
    b = batch(2, (1, 1))
    b["ids"].fill_(3)
    b["mask"].fill_(True)
    marker = b["logits"][0, 0, MARKER].item()
    fixed_z = torch.cat([b["logits"][0, 0, :MARKER], b["logits"][0, 0, MARKER + 1 :]]).logsumexp(0).item()

    def value(z_x: float) -> float:
        # For another token under the explicit policy, only the decision not to execute depends on z_x.
        refusal = torch.nn.functional.logsigmoid(torch.tensor(fixed_z - z_x, dtype=torch.float64)).item()
        return -b["advantages"].item() * refusal

    step = 1e-6
    numeric = (value(marker + step) - value(marker - step)) / (2 * step)
    b["logits"].requires_grad_()
    ih_grpo_loss(**inputs(b), hierarchy_weight=1.0).loss.backward()
    assert b["logits"].grad is not None
    assert b["logits"].grad[0, 0, MARKER].item() == pytest.approx(numeric, abs=1e-8)


def grpo_by_hand(i: dict[str, Any], low: float, high: float, dual: float) -> tuple[float, float, float]:
    """GRPO with clip-higher (DAPO) and dual clip (arXiv 1912.09729), one token at a time."""
    total, clipped, dual_clipped, count = 0.0, 0, 0, 0
    for row, col in i["mask"].nonzero().tolist():
        advantage = i["advantages"][row].item()
        ratio = (i["log_probs"][row, col] - i["old_log_probs"][row, col]).exp().item()
        objective = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
        clipped += objective < ratio * advantage
        if advantage < 0 and objective < dual * advantage:
            objective = dual * advantage
            dual_clipped += 1
        total -= objective
        count += 1
    return total / count, clipped / count, dual_clipped / count


@pytest.mark.parametrize("seed", range(5))
def test_weight_zero_is_grpo_with_clip_higher_and_dual_clip(seed: int) -> None:
    b = batch(seed, (8, 16))
    noise = torch.randn(8, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    i = inputs(b, inputs(b)["log_probs"].detach() + noise)
    out = ih_grpo_loss(**i, hierarchy_weight=0.0)
    loss, clipped, dual_clipped = grpo_by_hand(i, 0.2, 0.28, 3.0)
    assert out.loss.item() == pytest.approx(loss, abs=1e-12)
    assert out.policy_loss.item() == out.loss.item()
    assert out.clip_fraction.item() == pytest.approx(clipped)
    assert out.dual_clip_fraction.item() == pytest.approx(dual_clipped)
    assert clipped > 0
    assert dual_clipped > 0
    assert out.approx_kl.item() > 0


def test_weight_zero_gradient_is_grpo() -> None:
    b = batch(7)
    b["logits"].requires_grad_()
    ih_grpo_loss(**inputs(b), hierarchy_weight=0.0).loss.backward()
    logits = b["logits"].detach().requires_grad_()
    sampled = logits.log_softmax(-1).gather(-1, b["ids"][..., None])[..., 0]
    (-(sampled * b["advantages"][:, None])[b["mask"]].mean()).backward()
    torch.testing.assert_close(b["logits"].grad, logits.grad, atol=1e-12, rtol=0)


def test_loss_is_policy_plus_weighted_hierarchy() -> None:
    out = ih_grpo_loss(**inputs(batch()), hierarchy_weight=0.25)
    assert out.loss.item() == pytest.approx((out.policy_loss + 0.25 * out.hierarchy_loss).item())
    assert out.hierarchy_loss.item() != 0


def test_on_policy_nothing_is_clipped_and_kl_is_zero() -> None:
    out = ih_grpo_loss(**inputs(batch()))
    assert out.clip_fraction.item() == out.dual_clip_fraction.item() == out.approx_kl.item() == 0


def test_gradcheck() -> None:
    """Weight 0, because finite differences ignore the stop-gradients of the hierarchy term."""
    b = batch(4, (2, 3), scale=1.0)
    old = inputs(b)["log_probs"].detach() + 0.05

    def policy_loss(logits: Tensor) -> Tensor:
        return ih_grpo_loss(**inputs({**b, "logits": logits}, old), hierarchy_weight=0.0).loss

    assert torch.autograd.gradcheck(policy_loss, (b["logits"].requires_grad_(),))


def test_gradcheck_of_log_z() -> None:
    """With a constant coefficient, the hierarchy term can be checked by finite differences."""
    b = batch(5, (2, 3), scale=1.0)
    b["mask"].fill_(True)
    fixed = inputs(b)
    frozen_loss = (-b["advantages"][:, None]).expand(2, 3)
    gamma = 1 - fixed["execute_log_probs"].exp()
    coefficient = (gamma - (b["ids"] != MARKER).double()) * frozen_loss

    def reference(logits: Tensor) -> Tensor:
        others = torch.cat([logits[..., :MARKER], logits[..., MARKER + 1 :]], -1)
        return (coefficient * others.logsumexp(-1)).mean()

    logits = b["logits"].requires_grad_()
    assert torch.autograd.gradcheck(reference, (logits,))
    reference(logits).backward()
    expected, logits.grad = logits.grad, None
    i = inputs(b)
    plain = ih_grpo_loss(**i, hierarchy_weight=0.0).loss
    (ih_grpo_loss(**i, hierarchy_weight=1.0).loss - plain).backward()
    torch.testing.assert_close(logits.grad, expected, atol=1e-12, rtol=0)


def test_fully_masked_loss_is_zero_with_zero_gradient() -> None:
    b = batch()
    b["mask"].fill_(False)
    b["logits"].requires_grad_()
    out = ih_grpo_loss(**inputs(b), hierarchy_weight=1.0)
    out.loss.backward()
    assert b["logits"].grad is not None
    assert out.loss.item() == out.clip_fraction.item() == out.approx_kl.item() == 0
    assert b["logits"].grad.abs().max() == 0


def test_ignores_values_at_masked_positions() -> None:
    b = batch(6)
    clean = ih_grpo_loss(**inputs(b), hierarchy_weight=1.0)
    i = inputs(b)
    for name in ("log_probs", "old_log_probs", "execute_log_probs", "execute_logits"):
        i[name] = i[name].masked_fill(~b["mask"], torch.nan).requires_grad_(name != "old_log_probs")
    out = ih_grpo_loss(**i, hierarchy_weight=1.0)
    out.loss.backward()
    assert out.loss.item() == clean.loss.item()
    for name in ("log_probs", "execute_log_probs", "execute_logits"):
        assert i[name].grad.isfinite().all()
        assert i[name].grad[~b["mask"]].abs().max() == 0


def test_accepts_numeric_mask_and_token_advantages() -> None:
    i = inputs(batch(8))
    expected = ih_grpo_loss(**i)
    i["mask"] = i["mask"].to(torch.int64)
    i["advantages"] = i["advantages"][:, None].expand(4, 6)
    assert ih_grpo_loss(**i).loss.item() == expected.loss.item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampled", [MARKER, 0])
@pytest.mark.parametrize("margin", [-69.0776, 27.6310, 700.0, -700.0])  # p_x: 1e-30, 1 - 1e-12, 1, 0
def test_extreme_logits_stay_finite(dtype: torch.dtype, sampled: int, margin: float) -> None:
    logits = torch.zeros(1, 1, VOCAB, dtype=dtype)
    logits[..., MARKER] = margin + torch.tensor(VOCAB - 1.0).log()
    b = {
        "logits": logits.requires_grad_(),
        "ids": torch.tensor([[sampled]]),
        "advantages": torch.tensor([-1.5], dtype=dtype),
        "mask": torch.ones(1, 1, dtype=torch.bool),
    }
    out = ih_grpo_loss(**inputs(b), hierarchy_weight=1.0)
    out.loss.backward()
    assert out.loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().max() <= 4


def test_extreme_ratios_stay_finite() -> None:
    b = batch(9)
    b["logits"].requires_grad_()
    for shift in (-900.0, 900.0):
        out = ih_grpo_loss(**inputs(b, inputs(b)["log_probs"].detach() + shift))
        out.loss.backward()
        assert out.loss.isfinite()
        assert b["logits"].grad is not None
        assert b["logits"].grad.isfinite().all()


@pytest.mark.parametrize("processes", [1, 2])
def test_accumulation_and_data_parallelism_match_full_batch(processes: int) -> None:
    """Micro-batches with unequal token counts; gradients are averaged over processes, as in DDP."""
    b = batch(10, (8, 6))
    b["mask"][:5, 1:] = False
    b["logits"].requires_grad_()
    whole = ih_grpo_loss(**inputs(b), hierarchy_weight=0.5)
    whole.loss.backward()

    logits = b["logits"].detach().requires_grad_()
    micro_batches = [
        {"logits": logits[at : at + 2], **{k: b[k][at : at + 2] for k in ("ids", "advantages", "mask")}}
        for at in range(0, 8, 2)
    ]
    num_tokens = b["mask"].sum() / processes
    outs: list[IHGRPOLoss] = [
        ih_grpo_loss(**inputs(m), hierarchy_weight=0.5, num_tokens=num_tokens) for m in micro_batches
    ]
    (sum(out.loss for out in outs) / processes).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(logits.grad, b["logits"].grad, atol=1e-12, rtol=0)
    assert sum(o.policy_loss.item() for o in outs) / processes == pytest.approx(whole.policy_loss.item())
    assert sum(o.approx_kl.item() for o in outs) / processes == pytest.approx(whole.approx_kl.item())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.0, 8.0), weight=st.floats(0.0, 1.0))
def test_weight_interpolates_between_grpo_and_explicit_policy(seed: int, scale: float, weight: float) -> None:
    b = batch(seed, (2, 4), scale=scale)
    b["mask"][0, 0] = True
    b["logits"].requires_grad_()
    (gradient,) = torch.autograd.grad(ih_grpo_loss(**inputs(b), hierarchy_weight=weight).loss, b["logits"])

    def of(log_probs: Tensor) -> Tensor:
        objective = (log_probs * b["advantages"][:, None])[b["mask"]].mean()
        return torch.autograd.grad(-objective, b["logits"])[0]

    grpo, explicit = of(inputs(b)["log_probs"]), of(explicit_log_probs(b["logits"], b["ids"]))
    torch.testing.assert_close(gradient, (1 - weight) * grpo + weight * explicit, atol=1e-9, rtol=0)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scale=st.floats(0.0, 30.0),
    weight=st.floats(0.0, 1.0),
    drift=st.floats(-5.0, 5.0),
)
def test_any_logits_give_finite_results(seed: int, scale: float, weight: float, drift: float) -> None:
    b = batch(seed, (2, 4), scale=scale)
    b["logits"].requires_grad_()
    old = inputs(b)["log_probs"].detach() + drift
    out = ih_grpo_loss(**inputs(b, old), hierarchy_weight=weight)
    out.loss.backward()
    assert out.loss.isfinite()
    assert b["logits"].grad is not None
    assert b["logits"].grad.isfinite().all()
    assert 0 <= out.clip_fraction.item() <= 1
    assert 0 <= out.dual_clip_fraction.item() <= 1
    assert out.approx_kl.item() >= 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("log_probs", torch.zeros(4), "log_probs must be"),
        ("log_probs", torch.zeros(4, 6, dtype=torch.bfloat16), "float32 or float64"),
        ("old_log_probs", torch.zeros(4, 5, dtype=torch.float64), "old_log_probs must be"),
        ("execute_logits", torch.zeros(4, 6), "execute_logits must be torch.float64"),
        ("is_execute", torch.zeros(4, 6), "is_execute must be bool"),
        ("mask", torch.ones(4), "mask must be"),
        ("advantages", torch.zeros(3, dtype=torch.float64), "advantages must be"),
        ("dual_clip", 1.0, "dual_clip must be above 1"),
    ],
)
def test_rejects_invalid_arguments(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ih_grpo_loss(**{**inputs(batch()), name: value})


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [2.0, 12.0])
def test_explicit_log_probs_have_the_values_of_the_softmax_and_the_two_levels_gradient(
    seed: int, scale: float
) -> None:
    b = batch(seed, scale=scale)
    gradients = []
    for ours in (True, False):
        logits = b["logits"].detach().requires_grad_()
        given = inputs({**b, "logits": logits})
        if ours:
            names = ("log_probs", "execute_log_probs", "execute_logits", "is_execute")
            found = loss_module.explicit_log_probs(*(given[name] for name in names))
            torch.testing.assert_close(found, given["log_probs"], atol=1e-9, rtol=0)
        else:
            found = explicit_log_probs(logits, b["ids"])
        gradients.append(torch.autograd.grad((found * b["advantages"][:, None]).sum(), logits)[0])
    torch.testing.assert_close(*gradients, atol=1e-8, rtol=1e-6)


def test_the_explicit_policy_is_the_hierarchy_terms_limit_until_the_ratio_is_clipped() -> None:
    b = batch(2)
    gradients = []
    for fields in ({"hierarchy_weight": 1.0}, {"hierarchy_weight": 0.0, "explicit": True}):
        logits = b["logits"].detach().requires_grad_()
        old = inputs(b)["log_probs"].detach() - 0.1
        ih_grpo_loss(**inputs({**b, "logits": logits}, old), **fields).loss.backward()  # type: ignore[arg-type]
        gradients.append(logits.grad)
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=0)
    logits = b["logits"].detach().requires_grad_()
    far = inputs(b)["log_probs"].detach() - 2.0
    b["advantages"].fill_(1.0)
    ih_grpo_loss(
        **inputs({**b, "logits": logits}, far), hierarchy_weight=0.0, explicit=True
    ).loss.backward()  # fmt: skip
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


def test_the_explicit_policy_has_no_hierarchy_term() -> None:
    with pytest.raises(ValueError, match="hierarchy_weight must be 0"):
        ih_grpo_loss(**inputs(batch()), explicit=True)


def test_weights_scale_each_tokens_loss() -> None:
    b = batch(5)
    weights = torch.rand(b["ids"].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = ih_grpo_loss(**inputs(b), weights=weights, hierarchy_weight=0.0)
    expected = -(weights * b["advantages"][:, None])[b["mask"]].sum() / b["mask"].sum()
    torch.testing.assert_close(found.loss, expected)
    with pytest.raises(ValueError, match="weights must be"):
        ih_grpo_loss(**inputs(b), weights=weights[:1])
