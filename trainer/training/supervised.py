"""Supervised training of a causal LM, whole or by an adapter: batches, one optimizer step, held-out metrics.

Uses the chunked LM head, so no logits of size [tokens, vocabulary] exist in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.training.chunked_lm_head import PolicyModel

_EVALUATED_AT_ONCE = 256
"""Tokens whose logits exist at a time during evaluation."""


@dataclass(frozen=True, slots=True)
class TrainingText:
    """A conversation as token ids, and which of them the model is to write itself."""

    ids: Sequence[int]
    learned: Sequence[bool]
    """One per token; the first is never learned."""


@dataclass(frozen=True, slots=True)
class TextBatch:
    """B texts, padded on the right to T tokens."""

    input_ids: Tensor
    """[B, T] int64."""
    attention_mask: Tensor
    """[B, T] int64; 0 on padding."""
    targets: Tensor
    """[B, T] bool; the tokens that are learned."""

    @property
    def num_targets(self) -> int:
        return int(self.targets.sum())

    def to(self, device: torch.device | str) -> TextBatch:
        return TextBatch(self.input_ids.to(device), self.attention_mask.to(device), self.targets.to(device))


def make_text_batch(texts: Sequence[TrainingText], pad_id: int) -> TextBatch:
    """Pad ``texts`` to the longest.

    Raises:
        ValueError: there is no text, or ``learned`` does not fit ``ids``.
    """
    if not texts:
        raise ValueError("a batch needs at least one text")
    width = max(len(text.ids) for text in texts)
    input_ids = torch.full((len(texts), width), pad_id)
    attention_mask = torch.zeros(len(texts), width, dtype=torch.int64)
    targets = torch.zeros(len(texts), width, dtype=torch.bool)
    for index, text in enumerate(texts):
        if len(text.ids) != len(text.learned):
            raise ValueError(f"text {index} has {len(text.ids)} ids and {len(text.learned)} flags")
        end = len(text.ids)
        input_ids[index, :end] = torch.tensor(text.ids)
        attention_mask[index, :end] = 1
        targets[index, :end] = torch.tensor(text.learned)
    targets[:, 0] = False
    return TextBatch(input_ids, attention_mask, targets)


@dataclass(frozen=True, slots=True)
class StepResult:
    """One optimizer step. ``loss`` is the mean over the learned tokens, in nats."""

    loss: float
    tokens: int
    """Tokens in the batches, without padding."""
    learned: int
    grad_norm: float


def supervised_step(
    model: nn.Module,
    batches: Sequence[TextBatch],
    optimizer: torch.optim.Optimizer,
    marker_id: int,
    *,
    max_grad_norm: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> StepResult:
    """Take one step on the mean loss over the learned tokens of all ``batches``; clears the gradients.

    Args:
        model: ``PolicyModel`` of the causal LM, or a wrapper of one.
        batches: micro-batches on the model's device; they change memory and speed, not the result.
        optimizer: of the trained parameters.
        marker_id: id of the execute marker.
        max_grad_norm: gradients are clipped to this norm.
        dtype: of the forward pass; below float32 through autocast.

    Raises:
        ValueError: no token is learned.
    """
    learned = sum(batch.num_targets for batch in batches)
    if learned == 0:
        raise ValueError("no token of the batches is learned")
    total = 0.0
    for batch in batches:
        with _autocast(batch.input_ids.device, dtype):
            output = model(batch.input_ids, batch.attention_mask, batch.targets, marker_id)
        loss = -output.log_probs.sum() / learned
        loss.backward()
        total += float(loss.detach())
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(trained, max_grad_norm))
    if torch.isfinite(torch.tensor(norm)):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    tokens = sum(int(batch.attention_mask.sum()) for batch in batches)
    return StepResult(total, tokens, learned, norm)


def _autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


@dataclass(frozen=True, slots=True)
class HeldOutMetrics:
    """Metrics of predictions on texts that were not trained on. None if there is no such token."""

    loss: float
    """Mean over the learned tokens, in nats."""
    accuracy: float
    """Share of learned tokens that are the most likely ones."""
    marker_accuracy: float | None
    """The same of the places where the marker is to be written."""
    marker_false: float | None
    """Share of the other learned places at which the marker would be written."""

    def __str__(self) -> str:
        def share(value: float | None) -> str:
            return "-" if value is None else f"{value:.3f}"

        return (
            f"held out: loss {self.loss:.4f}, tokens right {self.accuracy:.3f}, "
            f"markers right {share(self.marker_accuracy)}, false markers {share(self.marker_false)}"
        )


@torch.no_grad()
def evaluate_texts(
    model: PolicyModel, batches: Sequence[TextBatch], marker_id: int, *, dtype: torch.dtype = torch.float32
) -> HeldOutMetrics:
    """Measure ``model`` on ``batches``; it is left in the mode, training or not, that it was in.

    Raises:
        ValueError: no token is learned.
    """
    was_training = model.training
    model.eval()
    loss = right = total = marker_right = markers = marker_false = 0.0
    try:
        for batch in batches:
            for logits, ids in _target_logits(model.model, batch, dtype):
                guesses = logits.argmax(-1)
                is_marker = ids == marker_id
                loss += float(torch.nn.functional.cross_entropy(logits, ids, reduction="sum"))
                right += int((guesses == ids).sum())
                total += len(ids)
                markers += int(is_marker.sum())
                marker_right += int((is_marker & (guesses == marker_id)).sum())
                marker_false += int((~is_marker & (guesses == marker_id)).sum())
    finally:
        model.train(was_training)
    if total == 0:
        raise ValueError("no token of the batches is learned")
    return HeldOutMetrics(
        loss / total,
        right / total,
        marker_right / markers if markers else None,
        marker_false / (total - markers) if total > markers else None,
    )


def _target_logits(model: Any, batch: TextBatch, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [n, V] in float32 at the places that predict the learned tokens, and these tokens [n]."""
    with _autocast(batch.input_ids.device, dtype):
        states = model.base_model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask
        ).last_hidden_state
    chosen = batch.targets[:, 1:]
    hidden, ids = states[:, :-1][chosen], batch.input_ids[:, 1:][chosen]
    head = model.get_output_embeddings()
    for start in range(0, len(ids), _EVALUATED_AT_ONCE):
        part = slice(start, start + _EVALUATED_AT_ONCE)
        with _autocast(hidden.device, dtype):
            logits = head(hidden[part])
        yield logits.float(), ids[part]
