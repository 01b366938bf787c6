"""The IH-GRPO loss: GRPO with clip-higher and dual clip, plus the hierarchy term.

A language model is implicitly a two-level policy: with ``x`` the execute marker and
``logZ = logsumexp of z_v over v != x``, the decision to execute has the logit ``z_x - logZ``, and the text is
sampled from the softmax over the other tokens. The gradient of the model's softmax differs from that of an
explicit two-level policy, because ``logZ`` couples the two levels. The hierarchy term removes this coupling
(IH-GRPO, arXiv 2605.18500).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.training.recipe_tables import OffPolicySettings

_MAX_LOG_RATIO = 20.0
"""Bound on the log ratio. Larger ratios are clipped anyway, and their exponential could overflow."""


@dataclass(frozen=True, slots=True)
class IHGRPOLoss:
    """Scalar loss terms: sums over the mask divided by ``num_tokens``, so that micro-batches add up.

    Only ``loss`` has a gradient; the other fields are for logging.
    """

    loss: Tensor
    """``policy_loss + hierarchy_weight * hierarchy_loss``."""
    policy_loss: Tensor
    """GRPO's clipped surrogate."""
    hierarchy_loss: Tensor
    """The hierarchy term before weighting. Only its gradient is meaningful, not its value."""
    clip_fraction: Tensor
    """Share of tokens whose ratio was clipped."""
    dual_clip_fraction: Tensor
    """Share of tokens with a negative advantage whose loss was bounded by the dual clip."""
    approx_kl: Tensor
    """Estimate of KL(old || new) as the mean of ``(r - 1) - log r``; never negative."""


def explicit_log_probs(
    log_probs: Tensor, execute_log_probs: Tensor, execute_logits: Tensor, is_execute: Tensor
) -> Tensor:
    """Return the log-probs of the explicit two-level policy (EH-GRPO): the same values, another gradient.

    The high-level policy executes with probability ``sigma(h)``. Its head is the marker's row of the LM
    head, a linear layer on the last hidden state: ``h = z_x - stop(logZ)``. The low-level policy is the
    softmax over all other tokens, which that row does not affect. A model with tied embeddings shares the row
    with the marker's input embedding. Values equal the model's own softmax, so any engine samples from this
    policy.

    Args:
        log_probs: log-probability of each sampled token; [...] like all arguments.
        execute_log_probs: log-probability of the execute marker.
        execute_logits: logit of the marker, after the temperature.
        is_execute: bool; True if the sampled token is the marker.
    """
    log_p_execute = execute_log_probs.clamp(max=-torch.finfo(execute_log_probs.dtype).eps)
    log_not_execute = (-torch.expm1(log_p_execute)).log()
    log_z = execute_logits - log_p_execute + log_not_execute
    decision = execute_logits - log_z.detach()
    low_level = log_probs - log_not_execute
    write = torch.nn.functional.logsigmoid(-decision) + low_level
    return torch.where(is_execute, torch.nn.functional.logsigmoid(decision), write)


def ih_grpo_loss(
    *,
    log_probs: Tensor,
    old_log_probs: Tensor,
    execute_log_probs: Tensor,
    execute_logits: Tensor,
    advantages: Tensor,
    is_execute: Tensor,
    mask: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float = 3.0,
    hierarchy_weight: float = 0.001,
    num_tokens: Tensor | float | None = None,
    weights: Tensor | None = None,
    explicit: bool = False,
) -> IHGRPOLoss:
    """Return the mean loss over the unmasked tokens.

    Tensors are [B, T] in float32 or float64 unless stated otherwise. With ``l`` the clipped loss of a token,
    ``p_x`` the marker's probability, and ``n`` 0 at positions where the marker was sampled and 1 elsewhere::

        loss = mean(l) + hierarchy_weight * mean((stop(1 - p_x) - n) * logZ * stop(l))

    With weight 1 and a ratio inside the clip range, this has the gradient of the explicit two-level policy,
    whose decision depends on ``z_x`` only. With weight 0 it is plain GRPO. If the ratio is clipped, ``l``
    keeps its value and has no gradient, so the hierarchy term still applies, as in the paper.

    Args:
        log_probs: log-probability of each sampled token under the policy being trained.
        old_log_probs: the same under the policy that sampled it; treated as a constant.
        execute_log_probs: log-probability of the execute marker at each position.
        execute_logits: logit of the marker, ``z_x``, after the temperature.
        advantages: [B], one per sample, or [B, T].
        is_execute: bool; True if the sampled token is the marker.
        mask: bool, or numbers with 0 for masked. Values at masked positions are ignored, including NaN.
        clip_low: the ratio is clipped below at ``1 - clip_low``.
        clip_high: the ratio is clipped above at ``1 + clip_high``.
        dual_clip: with a negative advantage a token's loss is at most ``dual_clip * -advantage``; above 1.
        hierarchy_weight: lambda of the paper.
        num_tokens: divisor of the sums. Default: the mask's sum. If an optimiser step consists of several
            micro-batches, pass the unmasked tokens of all of them and add up the losses. If gradients are
            also averaged over processes, pass the tokens of all processes divided by their number.
        weights: factors of each token's loss, treated as constants: importance weights, or those of an
            aggregation other than the mean over tokens. Default: 1.
        explicit: take the ratio of the explicit two-level policy instead, see `explicit_log_probs`;
            ``hierarchy_weight`` must be 0.

    Raises:
        ValueError: a shape, a dtype, ``dual_clip`` or ``hierarchy_weight`` is invalid; the message names the
            argument.
    """
    mask = mask.bool()
    if advantages.dim() == 1:
        advantages = advantages[:, None]
    _check(log_probs, old_log_probs, execute_log_probs, execute_logits, advantages, is_execute, mask)
    if weights is not None and weights.shape != log_probs.shape:
        raise ValueError(f"weights must be {list(log_probs.shape)} like log_probs, got {list(weights.shape)}")
    if dual_clip <= 1:
        raise ValueError(f"dual_clip must be above 1, got {dual_clip}")
    if explicit and hierarchy_weight:
        raise ValueError(f"hierarchy_weight must be 0 for the explicit policy, got {hierarchy_weight}")

    # Replace masked values before any arithmetic, so that a NaN there reaches neither loss nor gradient.
    log_probs, execute_log_probs, execute_logits = (
        t.masked_fill(~mask, fill)
        for t, fill in ((log_probs, 0.0), (execute_log_probs, -1.0), (execute_logits, 0.0))
    )
    old_log_probs = old_log_probs.detach().masked_fill(~mask, 0.0)
    advantages = advantages.detach().expand_as(log_probs).masked_fill(~mask, 0.0)

    if explicit:
        log_probs = explicit_log_probs(log_probs, execute_log_probs, execute_logits, is_execute & mask)
        log_probs = log_probs.masked_fill(~mask, 0.0)

    log_ratio = (log_probs - old_log_probs).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    unclipped = -ratio * advantages
    clipped = torch.maximum(unclipped, -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    ceiling = -dual_clip * advantages
    token_loss = torch.where(advantages < 0, torch.minimum(clipped, ceiling), clipped)
    if weights is not None:
        token_loss = token_loss * weights.detach().masked_fill(~mask, 0.0)

    # float32 cannot distinguish probabilities closer to 1 than this from 1.
    log_p_execute = execute_log_probs.clamp(max=-torch.finfo(execute_log_probs.dtype).eps)
    not_execute = -torch.expm1(log_p_execute)
    log_z = execute_logits - log_p_execute + not_execute.log()
    coupling = (not_execute.detach() - (~is_execute).to(log_z.dtype)) * log_z
    hierarchy = coupling * token_loss.detach()

    count = torch.as_tensor(mask.sum() if num_tokens is None else num_tokens, device=log_probs.device)
    count = count.to(log_probs.dtype).clamp(min=torch.finfo(log_probs.dtype).tiny)

    def mean(values: Tensor) -> Tensor:
        return values.to(log_probs.dtype).masked_fill(~mask, 0.0).sum() / count

    policy_loss, hierarchy_loss = mean(token_loss), mean(hierarchy)
    with torch.no_grad():
        clip_fraction = mean(clipped > unclipped)
        dual_clip_fraction = mean((advantages < 0) & (clipped > ceiling))
        approx_kl = mean(torch.expm1(log_ratio) - log_ratio)
    return IHGRPOLoss(
        loss=policy_loss + hierarchy_weight * hierarchy_loss,
        policy_loss=policy_loss.detach(),
        hierarchy_loss=hierarchy_loss.detach(),
        clip_fraction=clip_fraction,
        dual_clip_fraction=dual_clip_fraction,
        approx_kl=approx_kl,
    )


def _check(
    log_probs: Tensor,
    old_log_probs: Tensor,
    execute_log_probs: Tensor,
    execute_logits: Tensor,
    advantages: Tensor,
    is_execute: Tensor,
    mask: Tensor,
) -> None:
    """Raise ValueError for the first argument whose shape or dtype does not match ``log_probs``."""
    if log_probs.dim() != 2 or log_probs.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"log_probs must be [B, T] in float32 or float64, got {list(log_probs.shape)} {log_probs.dtype}"
        )
    if is_execute.dtype != torch.bool:
        raise ValueError(f"is_execute must be bool, got {is_execute.dtype}")
    same_dtype = {
        "old_log_probs": old_log_probs,
        "execute_log_probs": execute_log_probs,
        "execute_logits": execute_logits,
    }
    for name, tensor in same_dtype.items():
        if tensor.dtype != log_probs.dtype:
            raise ValueError(f"{name} must be {log_probs.dtype} like log_probs, got {tensor.dtype}")
    for name, tensor in {**same_dtype, "is_execute": is_execute, "mask": mask}.items():
        if tensor.shape != log_probs.shape:
            raise ValueError(
                f"{name} must be {list(log_probs.shape)} like log_probs, got {list(tensor.shape)}"
            )
    if advantages.shape not in (log_probs.shape, (log_probs.shape[0], 1)):
        raise ValueError(f"advantages must be [B] or [B, T], got {list(advantages.shape)}")


# Correction for the difference between the policy that sampled and the policy that is trained. Both have the
# same weights, but sampler and trainer use different kernels, often with different precision. Tensors are
# [N], with one item per token in the loss; ``sample`` is the index of the token's sample.

_MAX_LOG_WEIGHT = 20.0
"""Keeps exponentials finite; verl and TRL use the same bound."""
_QUANTILES = {"p01": 0.01, "p50": 0.5, "p99": 0.99}
_MOST_FOR_QUANTILES = 1_000_000


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
