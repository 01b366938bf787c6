"""GRPO advantages."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.training.filtering import group_advantages


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8))
def test_matches_formula(rewards: list[float]) -> None:
    advantages = group_advantages(torch.tensor(rewards, dtype=torch.float64)).tolist()
    if len(set(rewards)) == 1:
        assert advantages == [0.0] * len(rewards)
        return
    mean, std = statistics.fmean(rewards), statistics.stdev(rewards)
    assert advantages == pytest.approx([(r - mean) / (std + 1e-6) for r in rewards], abs=1e-6)


def test_one_correct_of_eight() -> None:
    advantages = group_advantages(torch.tensor([1.0] + [0.0] * 7))
    assert advantages[0].item() == pytest.approx(
        2.4749, abs=1e-3
    )  # 7/8 divided by the standard deviation 0.35355
    assert advantages[1].item() == pytest.approx(-0.35355, abs=1e-4)
    assert advantages.sum().item() == pytest.approx(0, abs=1e-6)


def test_each_row_is_a_separate_group() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0], [5.0, 5.0, 6.0]])
    advantages = group_advantages(rewards)
    assert torch.equal(advantages[0], group_advantages(rewards[0]))
    assert torch.equal(advantages[1], group_advantages(rewards[1]))


def test_equal_rewards_give_exact_zeros() -> None:
    assert group_advantages(torch.full((7,), 0.1)).tolist() == [0.0] * 7


def test_single_sample_has_no_advantage() -> None:
    assert group_advantages(torch.tensor([[1.0]])).tolist() == [[0.0]]


@pytest.mark.parametrize("rewards", [[], [1.0, float("nan")], [float("inf"), 0.0]])
def test_rejects_invalid_rewards(rewards: list[float]) -> None:
    with pytest.raises(ValueError, match="rewards must be"):
        group_advantages(torch.tensor(rewards))
