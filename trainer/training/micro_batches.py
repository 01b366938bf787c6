"""From rows to the tensors of forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from random import Random
from typing import Any

import torch
from torch import Tensor

from trainer.training.rollouts import Row


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The tensors of one forward pass: B rows of prompt and response, padded on the right to T tokens."""

    input_ids: Tensor
    """[B, T] int64."""
    attention_mask: Tensor
    """[B, T] int64; 0 on padding."""
    targets: Tensor
    """[B, T] bool; True on tokens that count in the loss."""
    old_log_probs: Tensor
    """[B, T] float32; the engine's log-probabilities at sampling time."""
    advantages: Tensor
    """[B] float32."""
    proximal_log_probs: Tensor | None = None
    """[B, T] float32; the trainer's own log-probabilities before the first update. None unless needed."""
    weights: Tensor | None = None
    """[B, T] float32; importance weights. None for 1, or if the loss computes them."""

    @property
    def num_targets(self) -> int:
        return int(self.targets.sum())

    @property
    def num_rows(self) -> int:
        """Rows with a target."""
        return int(self.targets.any(1).sum())

    @property
    def sample_index(self) -> Tensor:
        """[N] int64; the row of each target."""
        return self.targets.nonzero()[:, 0]

    def to(self, device: torch.device) -> MicroBatch:
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            moved[field.name] = None if value is None else value.to(device)
        return replace(self, **moved)


def make_micro_batch(rows: Sequence[Row], size: int, pad_id: int) -> MicroBatch:
    """Pad ``rows`` to one length, and add empty rows without targets up to ``size`` rows.

    Raises:
        ValueError: there are more than ``size`` rows.
    """
    if len(rows) > size:
        raise ValueError(f"{len(rows)} rows do not fit a micro-batch of {size}")
    width = max((row.length for row in rows), default=2)
    input_ids = torch.full((size, width), pad_id)
    attention_mask = torch.zeros(size, width, dtype=torch.int64)
    attention_mask[:, 0] = 1  # so that an empty row attends to something: a softmax over nothing is NaN
    targets = torch.zeros(size, width, dtype=torch.bool)
    old_log_probs = torch.zeros(size, width)
    advantages = torch.zeros(size)
    for index, row in enumerate(rows):
        sample, start, end = row.sample, len(row.sample.prompt_ids), row.length
        input_ids[index, :end] = torch.tensor([*sample.prompt_ids, *sample.ids])
        attention_mask[index, :end] = 1
        targets[index, start:end] = torch.tensor(row.mask, dtype=torch.bool)
        old_log_probs[index, start:end] = torch.tensor(sample.logprobs)
        advantages[index] = row.advantage
    return MicroBatch(input_ids, attention_mask, targets, old_log_probs, advantages)


def split_rows(
    rows: Sequence[Row], *, updates: int, micro_batches: int, size: int, seed: int
) -> list[list[Row]]:
    """Split ``rows`` into ``updates`` optimiser steps of ``micro_batches`` micro-batches each, in that order.

    Every process must run the same number of forward passes, so micro-batches may be short or empty. Each
    step gets an equal share of random rows. Within a step, rows of similar length are grouped, which saves
    padding.

    Raises:
        ValueError: there are more rows than fit.
    """
    if len(rows) > updates * micro_batches * size:
        raise ValueError(f"{len(rows)} rows do not fit {updates} x {micro_batches} micro-batches of {size}")
    order = list(rows)
    if updates > 1:
        Random(seed).shuffle(order)  # noqa: S311
    split = []
    for update in range(updates):
        own = sorted(order[update::updates], key=lambda row: row.length)
        split += [own[i * size : (i + 1) * size] for i in range(micro_batches)]
    return split
