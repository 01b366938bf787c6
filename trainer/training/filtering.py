"""Filters between rollout and loss, as in the paper's training set-up.

- A sample cut by the length limit is dropped: its reward says nothing about its content.
- A sample with a void turn (neither an answer nor a flush) stays in its group with reward 0, so that the
  other samples are compared with it. It is masked: none of its tokens are trained on.
- A group is dropped if fewer than ``min_valid`` of its samples can be trained on, or if all
  rewards are equal.

`group_advantages` computes the advantages of the kept samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

EPSILON = 1e-6
"""Added to the group's standard deviation. The paper's value; TRL uses 1e-4."""

GroupVerdict = Literal["kept", "too_few_valid", "zero_std"]


@dataclass(frozen=True, slots=True)
class GroupSample:
    """The properties of a finished episode that the filters use."""

    reward: float
    over_long: bool = False
    """True if the token limit of a turn or of the episode cut it."""
    void: bool = False
    """True if its last turn ended with neither an answer nor a flush."""


@dataclass(frozen=True, slots=True)
class FilteredGroup:
    """The samples of one prompt that are kept. Empty unless ``verdict`` is ``kept``."""

    verdict: GroupVerdict
    indices: tuple[int, ...] = ()
    """Positions in the group, in order: all but the over-long samples."""
    advantages: tuple[float, ...] = ()
    """One per index."""
    masked: tuple[bool, ...] = ()
    """One per index; True for void samples, whose loss mask must be all 0."""


@dataclass(slots=True)
class FilterCounts:
    """Running totals of the filters."""

    groups: dict[GroupVerdict, int] = field(
        default_factory=lambda: {"kept": 0, "too_few_valid": 0, "zero_std": 0}
    )
    samples: int = 0
    over_long: int = 0
    void: int = 0

    def metrics(self) -> dict[str, tuple[int, int]]:
        """Return (sum, count) pairs by metric name; pairs of several steps or processes can be added up."""
        groups = sum(self.groups.values())
        return {
            **{f"groups/{verdict}": (count, groups) for verdict, count in self.groups.items()},
            "samples/over_long": (self.over_long, self.samples),
            "samples/void": (self.void, self.samples),
        }


def overlong_penalty(tokens: int, limit: int, buffer: float) -> float:
    """Return what DAPO's soft overlong punishment (arXiv 2503.14476, section 3.4) adds to a reward.

    0 up to ``limit * (1 - buffer)`` tokens, then falling in a line to -1 at ``limit``.

    Args:
        tokens: of the response.
        limit: maximum tokens of a response; at least 1.
        buffer: share of the limit in which the penalty grows; 0 for no penalty.
    """
    if buffer <= 0:
        return 0.0
    width = buffer * limit
    return -min(1.0, max(0.0, (tokens - (limit - width)) / width))


def filter_group(
    samples: Sequence[GroupSample],
    counts: FilterCounts | None = None,
    *,
    min_valid: int = 4,
    min_std: float = 1e-3,
    mask_void: bool = True,
    scale: bool = True,
) -> FilteredGroup:
    """Apply the filters to the samples of one prompt and compute the advantages of the kept ones.

    Args:
        samples: the group, in any order.
        counts: updated if given.
        min_valid: minimum number of samples that are neither over-long nor void.
        min_std: minimum standard deviation (divisor n - 1) of the rewards of the kept samples.
        mask_void: if False, void samples are trained on like any others.
        scale: divide advantages by the standard deviation.
    """
    indices = tuple(i for i, sample in enumerate(samples) if not sample.over_long)
    masked = tuple(samples[i].void and mask_void for i in indices)
    rewards = torch.tensor([samples[i].reward for i in indices], dtype=torch.float64)
    if masked.count(False) < max(min_valid, 1):
        group = FilteredGroup("too_few_valid")
    elif len(indices) < 2 or rewards.std().item() < min_std:
        group = FilteredGroup("zero_std")
    else:
        advantages = group_advantages(rewards, scale=scale)
        group = FilteredGroup("kept", indices, tuple(advantages.tolist()), masked)
    if counts is not None:
        counts.groups[group.verdict] += 1
        counts.samples += len(samples)
        counts.over_long += sum(sample.over_long for sample in samples)
        counts.void += sum(sample.void for sample in samples)
    return group


def group_advantages(rewards: Tensor, epsilon: float = EPSILON, *, scale: bool = True) -> Tensor:
    """Return ``(r - mean) / (std + epsilon)`` over the samples of one prompt, one scalar per sample.

    ``std`` has the divisor n - 1, as in TRL and in verl, which the paper's training code is based on.
    DeepSeekMath (arXiv 2402.03300, section 4.1) does not specify the divisor. With 8 samples the choice
    scales all advantages by 0.94.

    Args:
        rewards: [..., n] float, the n samples of a prompt in the last dimension.
        epsilon: added to ``std``.
        scale: if False, return ``r - mean`` (Dr. GRPO, arXiv 2503.20783).

    Returns:
        [..., n] in the same dtype; zeros if n is 1 or all rewards are equal.

    Raises:
        ValueError: there are no samples, or a reward is not finite.
    """
    if rewards.dim() == 0 or rewards.shape[-1] == 0:
        raise ValueError(f"rewards must be [..., n] with n of at least 1, got {list(rewards.shape)}")
    if not rewards.isfinite().all():
        raise ValueError(f"rewards must be finite, got {rewards.tolist()}")
    if rewards.shape[-1] == 1:
        return torch.zeros_like(rewards)
    centred = rewards - rewards.mean(-1, keepdim=True)
    # The mean of equal numbers can have a rounding error, which the small epsilon would amplify.
    spread = rewards.amax(-1, keepdim=True) > rewards.amin(-1, keepdim=True)
    scaled = centred / (rewards.std(-1, keepdim=True) + epsilon) if scale else centred
    return torch.where(spread, scaled, 0.0)
