"""The difference between the policy that sampled and the policy that is trained: measure it, correct for it.

Both have the same weights, but their kernels and often their precision differ. Tensors have shape
[N], with one item per token that the loss counts; ``sample`` is the index of the token's sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.training.recipe_tables import OffPolicySettings

_MAX_LOG_WEIGHT = 20.0
"""Keeps exponentials finite; verl and TRL use the same bound."""
_QUANTILES = {"p01": 0.01, "p50": 0.5, "p99": 0.99}
_MOST_FOR_QUANTILES = 1_000_000
MISMATCH_METRICS = (
    "k1", "k3", "ratio_min", "ratio_p01", "ratio_p50", "ratio_p99", "ratio_max", "perplexity_gap"
)  # fmt: skip
"""Names of what `mismatch_metrics` returns."""


@dataclass(frozen=True, slots=True)
class Correction:
    """Weight of each token and whether it is kept. Neither tensor carries a gradient."""

    weights: Tensor
    """Factor of the token's loss; 1 without importance weights."""
    keep: Tensor
    """bool; tokens that stay in the loss and in what it is divided by."""


@torch.no_grad()
def correct(
    settings: OffPolicySettings, trainer_log_probs: Tensor, sampler_log_probs: Tensor, sample: Tensor
) -> Correction:
    """Return importance weights ``trainer / sampler``, and which tokens are left out.

    Weights that are truncated still count in the denominator; tokens and samples that are masked or rejected
    do not, or the remaining ones would be trained with a smaller step.

    Args:
        settings: the recipe's table.
        trainer_log_probs: of the sampled tokens under the trainer's weights before the update.
        sampler_log_probs: as the sampler reported them.
        sample: int64, 0 and up.

    Raises:
        ValueError: the shapes differ.
    """
    if not trainer_log_probs.shape == sampler_log_probs.shape == sample.shape or sample.dim() != 1:
        raise ValueError(
            f"log-probs and sample must all be [N], got {list(trainer_log_probs.shape)}, "
            f"{list(sampler_log_probs.shape)} and {list(sample.shape)}"
        )
    log_ratio = trainer_log_probs - sampler_log_probs
    keep = torch.ones_like(sample, dtype=torch.bool)
    weights = torch.ones_like(log_ratio)
    if len(sample) == 0:
        return Correction(weights, keep)
    if settings.weights != "none":
        is_sequence = settings.weights.startswith("sequence")
        log_weight = _per_sample(log_ratio, sample, "sum")[sample] if is_sequence else log_ratio
        weights = log_weight.clamp(-_MAX_LOG_WEIGHT, _MAX_LOG_WEIGHT).exp()
        low, high = settings.bounds
        if settings.weights.endswith("mask"):
            keep &= (weights >= low) & (weights <= high)
        else:
            weights = weights.clamp(low, high)
    if settings.max_drift is not None:
        keep &= (_per_sample(log_ratio, sample, "mean").abs() <= settings.max_drift)[sample]
    if settings.veto_below is not None:
        keep &= (_per_sample(log_ratio, sample, "amin").exp() >= settings.veto_below)[sample]
    return Correction(weights, keep)


@torch.no_grad()
def mismatch_metrics(
    trainer_log_probs: Tensor, sampler_log_probs: Tensor, sample: Tensor
) -> dict[str, float]:
    """Distance of the sampler's policy from the trainer's at the sampled tokens; empty if there are none.

    - ``k1``: mean of ``log(sampler / trainer)``, the plain estimator of KL(sampler || trainer); may be
      negative.
    - ``k3``: mean of ``r - 1 - log r`` with ``r = trainer / sampler``; the same in expectation, never
      negative, and of less variance (Schulman 2020, "Approximating KL divergence").
    - ``ratio_min``, ``ratio_p01``, ``ratio_p50``, ``ratio_p99``, ``ratio_max``: of ``r`` over tokens.
    - ``perplexity_gap``: mean over samples of the log-perplexity under the trainer, minus that under the
      sampler.
    """
    if len(sample) == 0:
        return {}
    log_ratio = (trainer_log_probs - sampler_log_probs).double()
    bounded = log_ratio.clamp(-_MAX_LOG_WEIGHT, _MAX_LOG_WEIGHT)
    ratio = bounded.exp()
    # torch.quantile takes 16 million items at most
    every = ratio[:: -(-len(ratio) // _MOST_FOR_QUANTILES)]
    quantiles = {f"ratio_{name}": float(torch.quantile(every, share)) for name, share in _QUANTILES.items()}
    gaps = _per_sample(-log_ratio, sample, "mean")[torch.unique(sample)]
    return {
        "k1": float(-log_ratio.mean()),
        "k3": float((torch.expm1(bounded) - bounded).mean()),
        "ratio_min": float(ratio.min()),
        "ratio_max": float(ratio.max()),
        **quantiles,
        "perplexity_gap": float(gaps.mean()),
    }


def _per_sample(values: Tensor, sample: Tensor, reduce: str) -> Tensor:
    """One item for each sample up to the highest; 0 for those without a token."""
    into = values.new_zeros(int(sample.max()) + 1)
    return into.scatter_reduce(0, sample, values, reduce, include_self=False)


def reference_kl(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """Return KL(policy || reference) at each sampled token by the estimator ``r - 1 - log r``.

    ``r`` is reference / policy. As in GRPO (arXiv 2402.03300, equation 4): never negative, and the gradient
    goes through ``log_probs`` alone.

    Args:
        log_probs: [...] under the policy that is trained.
        reference_log_probs: of the same shape, under the frozen reference.
    """
    log_ratio = (reference_log_probs.detach() - log_probs).clamp(-_MAX_LOG_WEIGHT, _MAX_LOG_WEIGHT)
    return torch.expm1(log_ratio) - log_ratio
