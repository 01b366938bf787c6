"""GRPO's advantages: how much better than its group a sample did."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6
"""Added to the group's deviation; the paper's value (TRL's own is 1e-4)."""


def group_advantages(rewards: Tensor, epsilon: float = EPSILON) -> Tensor:
    """``(r - mean) / (std + epsilon)`` over the samples of one prompt, one scalar a sample.

    ``std`` is the sample deviation (divisor n - 1), as in verl, which the paper's training builds on, and in
    TRL; DeepSeekMath (arXiv 2402.03300, section 4.1) leaves it open. With 8 samples the choice scales all
    advantages by 0.94.

    Args:
        rewards: [..., n] float, n samples of a prompt in the last dimension.
        epsilon: see above.

    Returns:
        [..., n], of the same dtype; zeros where n is 1 or the rewards are all equal.

    Raises:
        ValueError: there is no sample, or a reward is not finite.
    """
    if rewards.dim() == 0 or rewards.shape[-1] == 0:
        raise ValueError(f"rewards must be [..., n] with n of at least 1, got {list(rewards.shape)}")
    if not rewards.isfinite().all():
        raise ValueError(f"rewards must be finite, got {rewards.tolist()}")
    if rewards.shape[-1] == 1:
        return torch.zeros_like(rewards)
    centred = rewards - rewards.mean(-1, keepdim=True)
    # The mean of equal numbers may be off by a rounding error, which the small epsilon would blow up.
    spread = rewards.amax(-1, keepdim=True) > rewards.amin(-1, keepdim=True)
    return torch.where(spread, centred / (rewards.std(-1, keepdim=True) + epsilon), 0.0)
