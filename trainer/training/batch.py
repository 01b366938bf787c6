"""From samples to the tensors of micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from trainer.training.episodes import Sample


@dataclass(frozen=True, slots=True)
class Row:
    """A sample and what GRPO made of its reward."""

    sample: Sample
    advantage: float

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return len(self.sample.prompt_ids) + len(self.sample.ids)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass. B rows, padded on the right to the longest, T tokens: prompt, then response."""

    input_ids: Tensor
    """[B, T] int64."""
    attention_mask: Tensor
    """[B, T] int64; 0 on padding."""
    targets: Tensor
    """[B, T] bool; the tokens that the loss counts."""
    old_log_probs: Tensor
    """[B, T] float32; the engine's, as it drew the tokens."""
    advantages: Tensor
    """[B] float32."""

    @property
    def num_targets(self) -> int:
        return int(self.targets.sum())


def make_micro_batch(rows: Sequence[Row], size: int, pad_id: int) -> MicroBatch:
    """Pad ``rows`` to one length, and with empty rows to ``size`` rows; empty rows have no target.

    Raises:
        ValueError: more rows than ``size``.
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
        targets[index, start:end] = torch.tensor(sample.mask, dtype=torch.bool)
        old_log_probs[index, start:end] = torch.tensor(sample.logprobs)
        advantages[index] = row.advantage
    return MicroBatch(input_ids, attention_mask, targets, old_log_probs, advantages)


def split_rows(
    rows: Sequence[Row], *, updates: int, micro_batches: int, size: int, seed: int
) -> list[list[Row]]:
    """Deal ``rows`` to ``updates`` optimiser steps of ``micro_batches`` micro-batches each, in that order.

    Every process must run the same number of forward passes, so micro-batches may come out short or empty.
    Steps get an equal share of random rows; inside a step rows of like length go together, to save padding.

    Raises:
        ValueError: more rows than fit.
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
