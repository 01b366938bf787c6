from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.training.loss import correct, mismatch_metrics, reference_kl
from trainer.training.recipe_tables import OffPolicySettings

SAMPLE = torch.tensor([0, 0, 0, 1, 1, 3])
RATIOS = torch.tensor([1.0, 4.0, 0.1, 1.5, 1.6, 1.0], dtype=torch.float64)
SAMPLER = torch.tensor([-1.0, -3.0, -0.5, -2.0, -1.0, -4.0], dtype=torch.float64)
TRAINER = SAMPLER + RATIOS.log()


def result(**fields: object) -> tuple[list[float], list[bool]]:
    found = correct(OffPolicySettings.model_validate(fields), TRAINER, SAMPLER, SAMPLE)
    return [round(w, 6) for w in found.weights.tolist()], found.keep.tolist()


def test_without_correction_all_tokens_count_alike() -> None:
    assert result() == ([1.0] * 6, [True] * 6)
    assert not OffPolicySettings().is_on


def test_token_truncate_cuts_weights_to_the_upper_bound() -> None:
    assert result(weights="token_truncate") == ([1.0, 2.0, 0.1, 1.5, 1.6, 1.0], [True] * 6)
    assert result(weights="token_truncate", max_weight=1.2, min_weight=0.5)[0] == [1, 1.2, 0.5, 1.2, 1.2, 1]


def test_token_mask_leaves_out_tokens_outside_the_bounds() -> None:
    weights, keep = result(weights="token_mask")
    assert keep == [True, True, False, True, True, True]
    assert weights == [1.0, 4.0, 0.1, 1.5, 1.6, 1.0]


def test_sequence_weights_are_products_over_the_sample() -> None:
    assert result(weights="sequence_truncate") == ([0.4] * 3 + [2.0] * 2 + [1.0], [True] * 6)
    weights, keep = result(weights="sequence_mask")
    assert keep == [True, True, True, False, False, True]
    assert weights == [0.4] * 3 + [2.4] * 2 + [1.0]


def test_drift_rejects_whole_samples() -> None:
    drift = [abs(math.log(0.4)) / 3, abs(math.log(2.4)) / 2, 0.0]
    _, keep = result(max_drift=(drift[0] + drift[1]) / 2)
    assert keep == [True, True, True, False, False, True]
    assert result(max_drift=drift[1] + 0.01)[1] == [True] * 6


def test_a_token_that_the_trainer_finds_impossible_vetoes_its_sample() -> None:
    assert result(veto_below=0.2) == ([1.0] * 6, [False] * 3 + [True] * 3)
    assert result(veto_below=0.05)[1] == [True] * 6


def test_only_what_removes_tokens_says_so() -> None:
    removing = [
        {"weights": "token_mask"},
        {"weights": "sequence_mask"},
        {"max_drift": 1},
        {"veto_below": 0.1},
    ]
    for fields in removing:
        table = OffPolicySettings.model_validate(fields)
        assert table.removes_tokens
        assert table.is_on
    truncating = OffPolicySettings(weights="token_truncate")
    assert truncating.is_on
    assert not truncating.removes_tokens


def test_bounds_in_the_wrong_order_are_rejected() -> None:
    with pytest.raises(ValueError, match="above max_weight"):
        OffPolicySettings(weights="token_mask", min_weight=6)


def test_shapes_that_differ_are_rejected() -> None:
    with pytest.raises(ValueError, match="must all be"):
        correct(OffPolicySettings(), TRAINER[:2], SAMPLER, SAMPLE)


def test_no_tokens_need_no_correction() -> None:
    empty = torch.zeros(0)
    for weights in ("none", "token_mask", "sequence_truncate"):
        found = correct(
            OffPolicySettings.model_validate({"weights": weights, "max_drift": 0.1, "veto_below": 0.1}),
            empty,
            empty,
            empty.long(),
        )
        assert found.weights.shape == found.keep.shape == (0,)
    assert mismatch_metrics(empty, empty, empty.long()) == {}


def test_metrics_have_the_values_of_their_definitions() -> None:
    found = mismatch_metrics(TRAINER, SAMPLER, SAMPLE)
    logs = RATIOS.log()
    assert found["k1"] == pytest.approx(-logs.mean().item())
    assert found["k3"] == pytest.approx((RATIOS - 1 - logs).mean().item())
    assert found["ratio_min"] == pytest.approx(0.1)
    assert found["ratio_max"] == pytest.approx(4.0)
    assert found["ratio_p50"] == pytest.approx(1.25)
    gaps = [-math.log(0.4) / 3, -math.log(2.4) / 2, 0.0]
    assert found["perplexity_gap"] == pytest.approx(sum(gaps) / 3)


def test_equal_policies_have_no_mismatch() -> None:
    found = mismatch_metrics(SAMPLER, SAMPLER, SAMPLE)
    assert all(value == (1.0 if name.startswith("ratio") else 0.0) for name, value in found.items())


log_probs = st.lists(st.floats(-30, 0), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(log_probs, st.floats(-5, 5))
def test_truncated_weights_stay_inside_their_bounds_and_finite(values: list[float], shift: float) -> None:
    trainer = torch.tensor(values)
    for weights in ("token_truncate", "sequence_truncate"):
        table = OffPolicySettings.model_validate({"weights": weights})
        found = correct(table, trainer, trainer - 10 * shift, torch.zeros(len(values), dtype=torch.int64))
        assert bool((found.weights <= 2).all() & (found.weights >= 0).all() & found.keep.all())


def test_importance_weights_remove_the_samplers_bias() -> None:
    """The mean of a function under the trainer's policy, from the sampler's tokens."""
    generator = torch.Generator().manual_seed(0)
    sampler, trainer = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.3, 0.3, 0.4])
    tokens = torch.multinomial(sampler, 200_000, replacement=True, generator=generator)
    found = correct(
        OffPolicySettings(weights="token_truncate", max_weight=10),
        trainer.log()[tokens],
        sampler.log()[tokens],
        torch.arange(len(tokens)),
    )
    value = torch.tensor([1.0, 5.0, -2.0])
    assert (found.weights * value[tokens]).mean().item() == pytest.approx(
        (trainer * value).sum().item(), abs=0.02
    )


def test_kl_is_right_in_expectation_and_pulls_towards_the_reference() -> None:
    logits: Tensor = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.0, 0.5, -0.5], dtype=torch.float64).log_softmax(0)
    policy = logits.log_softmax(0)
    estimate = (policy.exp().detach() * reference_kl(policy, reference)).sum()
    assert estimate.item() == pytest.approx((policy.exp() * (policy - reference)).sum().item())
    assert bool((reference_kl(policy, reference) >= 0).all())
    (gradient,) = torch.autograd.grad(estimate, logits)
    moved = (logits - 0.01 * gradient).log_softmax(0)
    true = [(p.exp() * (p - reference)).sum().item() for p in (policy, moved)]
    assert true[1] < true[0]


def test_kl_of_the_reference_itself_is_zero_without_gradient() -> None:
    policy = torch.tensor([-1.0, -2.0], requires_grad=True)
    values = reference_kl(policy, policy.detach())
    assert values.tolist() == [0.0, 0.0]
    (gradient,) = torch.autograd.grad(values.sum(), policy)
    assert gradient.tolist() == [0.0, 0.0]
