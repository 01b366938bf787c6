"""GRPO advantages: the reward of a sample relative to its group.

It is a separate module so that another estimator can replace it.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6
"""Added to the group's standard deviation. The paper's value; TRL uses 1e-4."""


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
