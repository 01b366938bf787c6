"""The filters between rollout and loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.training.filtering import (
    FilterCounts,
    GroupSample,
    filter_group,
    group_advantages,
    overlong_penalty,
)

RIGHT, WRONG = GroupSample(1.0), GroupSample(0.0)
CUT, VOID = GroupSample(0.0, over_long=True), GroupSample(0.0, void=True)


def test_mixed_group_is_kept_with_advantages() -> None:
    group = filter_group([RIGHT, WRONG] * 4)
    assert group.verdict == "kept"
    assert group.indices == tuple(range(8))
    assert group.masked == (False,) * 8
    expected = group_advantages(torch.tensor([1.0, 0.0] * 4, dtype=torch.float64))
    assert group.advantages == tuple(expected.tolist())


@pytest.mark.parametrize("outcomes", [[RIGHT] * 8, [WRONG] * 8, [RIGHT] * 5 + [GroupSample(1.0005)] * 3])
def test_equal_rewards_have_zero_std(outcomes: list[GroupSample]) -> None:
    assert filter_group(outcomes).verdict == "zero_std"


def test_over_long_samples_are_dropped_before_the_advantage() -> None:
    group = filter_group([CUT, RIGHT, CUT, WRONG, WRONG, RIGHT])
    assert group.indices == (1, 3, 4, 5)
    assert sum(group.advantages) == pytest.approx(0)
    # All rewards are equal after the cut samples are dropped.
    assert filter_group([CUT, CUT, *[RIGHT] * 6]).verdict == "zero_std"


def test_void_samples_count_as_failures_and_are_masked() -> None:
    group = filter_group([VOID, RIGHT, RIGHT, RIGHT, RIGHT])
    assert group.verdict == "kept"
    assert group.masked == (True, False, False, False, False)
    assert group.advantages[0] < 0 < group.advantages[1]


@pytest.mark.parametrize("lost", [CUT, VOID])
def test_drops_group_with_fewer_than_four_valid_samples(lost: GroupSample) -> None:
    assert filter_group([RIGHT, WRONG, RIGHT, *[lost] * 5]).verdict == "too_few_valid"
    assert filter_group([RIGHT, WRONG, RIGHT, WRONG, *[lost] * 4]).verdict == "kept"


def test_empty_group_has_too_few_valid() -> None:
    assert filter_group([], min_valid=0).verdict == "too_few_valid"


def test_counts_add_up() -> None:
    counts = FilterCounts()
    for outcomes in (
        [RIGHT, WRONG] * 4,
        [RIGHT] * 8,
        [CUT, VOID, *[WRONG] * 3, RIGHT, RIGHT, RIGHT],
        [CUT] * 8,
    ):
        filter_group(outcomes, counts)
    assert counts.metrics() == {
        "groups/kept": (2, 4),
        "groups/too_few_valid": (1, 4),
        "groups/zero_std": (1, 4),
        "samples/over_long": (9, 32),
        "samples/void": (1, 32),
    }


@given(
    st.lists(st.builds(GroupSample, st.sampled_from([0.0, 1.0]), st.booleans(), st.booleans()), max_size=10)
)
def test_kept_groups_have_learning_signal(outcomes: list[GroupSample]) -> None:
    group = filter_group(outcomes)
    assert len(group.indices) == len(group.advantages) == len(group.masked)
    if group.verdict != "kept":
        assert not group.indices
        return
    assert group.masked.count(False) >= 4
    assert not any(outcomes[i].over_long for i in group.indices)
    for i, advantage in zip(group.indices, group.advantages, strict=True):
        assert (advantage > 0) == (outcomes[i].reward == 1.0)


def test_void_samples_are_not_masked_on_request() -> None:
    samples = [GroupSample(1.0), *[GroupSample(0.0, void=True)] * 3]
    group = filter_group(samples, mask_void=False)
    assert group.verdict == "kept"
    assert group.masked == (False,) * 4


def test_advantages_are_centred_only_on_request() -> None:
    group = filter_group([GroupSample(1.0), *[GroupSample(0.0)] * 3], scale=False)
    assert group.advantages == pytest.approx((0.75, -0.25, -0.25, -0.25))


def test_the_overlong_penalty_grows_in_the_buffer() -> None:
    found = [overlong_penalty(tokens, 100, 0.2) for tokens in (0, 80, 85, 90, 100, 150)]
    assert found == pytest.approx([0.0, 0.0, -0.25, -0.5, -1.0, -1.0])
    assert overlong_penalty(100, 100, 0.0) == 0.0
