"""Schedules of the learning rate: warm-up, then constant, linear or cosine decay.

Unlike transformers' schedules, the first warm-up step has a rate above 0, so that no rollout is wasted.
"""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from trainer.training.config import TrainConfig


def rate_factor(config: TrainConfig, step: int) -> float:
    """Return the factor of ``learning_rate`` for optimiser step number ``step``, counted from 0.

    With ``warmup_steps`` w the factors of the warm-up are 1 / (w + 1), ..., w / (w + 1). The decay reaches 0
    after the last step, so every step has a rate above 0.
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if not config.schedule_ends_with_run:
        return 1.0
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    if progress >= 1:
        return 0.0
    return 1 - progress if config.lr_schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2


def make_scheduler(config: TrainConfig, optimizer: Optimizer) -> LambdaLR:
    """Return the scheduler of a run. Its state has no function, so it can be loaded by any version."""
    return LambdaLR(optimizer, partial(rate_factor, config))
