"""What a request adds to its logits before a token is drawn: bias, then the three penalties."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.engines.base import Sampling
from service.engines.grammar import Grammar


@dataclass(frozen=True, slots=True)
class History:
    """Token ids that a call has seen: those of its prompt, and how often it has sampled which."""

    prompt: frozenset[int]
    sampled: Counter[int]
    stops: tuple[int, ...] = ()
    """Stop tokens, which ``min_tokens`` keeps out."""
    grammar: Grammar | None = None
    """What the reply may still write; None: anything."""


def adjust(logits: Tensor, settings: Sequence[Sampling], histories: Sequence[History | None]) -> Tensor:
    """New logits [B, V] with each row's bias and penalties; in vLLM's order, so that engines agree.

    ``histories`` has B items, None where the row asks for nothing. Ids are those of the vocabulary.
    """
    if all(history is None for history in histories):
        return logits
    logits = logits.clone()
    for row, sampling, history in zip(logits, settings, histories, strict=True):
        if history is not None:
            _adjust_row(row, sampling, history)
    return logits


def _adjust_row(row: Tensor, sampling: Sampling, history: History) -> None:
    """``row`` [V], in place."""
    if sampling.logit_bias:
        ids, bias = zip(*sampling.logit_bias, strict=True)
        row[_ids(ids, row)] += torch.tensor(bias, dtype=row.dtype, device=row.device)
    if sampling.repetition_penalty != 1:
        seen = _ids([*(history.prompt | history.sampled.keys())], row)
        scores, penalty = row[seen], sampling.repetition_penalty
        row[seen] = torch.where(scores > 0, scores / penalty, scores * penalty)
    if history.grammar is not None:
        history.grammar.mask(row, history.stops)
    if history.stops and history.sampled.total() < sampling.min_tokens:
        row[_ids(history.stops, row)] = float("-inf")
    if history.sampled:
        ids_sampled = _ids([*history.sampled], row)
        counts = torch.tensor([*history.sampled.values()], dtype=row.dtype, device=row.device)
        row[ids_sampled] -= counts * sampling.frequency_penalty + sampling.presence_penalty


def _ids(ids: Sequence[int], row: Tensor) -> Tensor:
    return torch.tensor(ids, dtype=torch.int64, device=row.device)
