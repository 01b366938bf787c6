"""The learning-rate schedule: a function of the optimiser step and the recipe, without hidden state.

It differs from transformers' schedules in two ways: no step of the warm-up has rate 0, and a run that resumes
with more ``steps`` continues on the schedule of the new number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from trainer.training.config import TrainConfig


def rate_factor(config: TrainConfig, step: int) -> float:
    """Return the factor of the learning rate for an optimiser step, counted from 0.

    During the first ``warmup_steps`` steps it rises in equal parts to 1, which the step after them has. With
    ``linear`` and ``cosine`` it then falls and would be 0 at step ``steps``, one after the last.
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.lr_schedule in ("constant", "constant_with_warmup"):
        return 1.0
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    if config.lr_schedule == "linear":
        return max(1.0 - done, 0.0)
    return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def make_scheduler(config: TrainConfig, optimizer: torch.optim.Optimizer) -> LambdaLR:
    """Return the scheduler that sets the rate of each parameter group, from the group's own base rate."""
    # A plain function, so that a checkpoint does not contain it.
    return LambdaLR(optimizer, lambda step: rate_factor(config, step))


def apply_current_rates(scheduler: LambdaLR, groups: Iterable[dict[str, Any]]) -> None:
    """Set the rates of the scheduler's current step, after scheduler and optimiser were loaded.

    A checkpoint contains the rates of the schedule that it was saved with, which may have had another number
    of steps.

    Args:
        scheduler: from `make_scheduler`, with loaded state.
        groups: the optimiser's parameter groups.
    """
    rates = []
    factors = [scale(scheduler.last_epoch) for scale in scheduler.lr_lambdas]
    for group, base, factor in zip(groups, scheduler.base_lrs, factors, strict=True):
        group["lr"] = base * factor
        rates.append(group["lr"])
    scheduler._last_lr = rates
