"""Sampling: from logits to tokens, for a whole batch, with settings per row.

`adjust` applies bias, penalties and grammars to the logits; `sample` draws the tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.engines.base import PromptLogprob, Sampling, TopLogprob
from service.engines.transformers.grammar import Grammar

GREEDY_BELOW = 1e-5
"""Temperatures below this value count as 0: dividing by them would overflow."""

_SORTED_WIDTH = 1024
"""Candidates that a filter sorts first. It sorts the whole vocabulary only if these do not reach the
cut-off."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One sampled token. ``logprob`` is taken after the temperature (1 if greedy) and before the filters."""

    token_id: int
    logprob: float
    top_logprobs: tuple[TopLogprob, ...] = ()


def sample(logits: Tensor, settings: Sequence[Sampling], uniforms: Sequence[float]) -> list[Draw]:
    """Draw one token per row.

    Each row inverts its cumulative distribution, in vocabulary order, at its uniform number. Rows are
    therefore independent of each other, and the rounding noise that differs between batch sizes changes a
    draw only if the number lies within this noise of a boundary.

    Args:
        logits: [B, V], float32.
        settings: one per row.
        uniforms: one number in [0, 1) per row; ignored by greedy rows.
    """
    greedy = [s.temperature < GREEDY_BELOW for s in settings]
    temperatures = [1.0 if g else s.temperature for g, s in zip(greedy, settings, strict=True)]
    if any(t != 1.0 for t in temperatures):
        logits = logits / _column(temperatures, logits)
    logprobs = torch.log_softmax(logits, dim=-1)
    ids = _draw(logprobs, settings, greedy, uniforms)
    chosen = logprobs.gather(1, ids[:, None])[:, 0]
    tops = _top_logprobs(logprobs, settings)
    return [Draw(*row) for row in zip(ids.tolist(), chosen.tolist(), tops, strict=True)]


def score(logits: Tensor, tokens: Sequence[int], top: int) -> list[PromptLogprob]:
    """Return the log-probability of each given token, and the ``top`` most likely ones.

    Args:
        logits: [T, V], float32.
        tokens: one per row.
        top: number of alternatives.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    ids = torch.tensor(tokens, dtype=torch.int64, device=logits.device)
    chosen = logprobs.gather(1, ids[:, None])[:, 0].tolist()
    tops = _top_logprobs(logprobs, [Sampling(top_logprobs=top)] * len(tokens))
    return [PromptLogprob(*row) for row in zip(chosen, tops, strict=True)]


def _draw(
    logprobs: Tensor, settings: Sequence[Sampling], greedy: Sequence[bool], uniforms: Sequence[float]
) -> Tensor:
    """Token ids [B]. Each row takes the cheapest path: most need no pass over the sorted vocabulary."""
    vocabulary = logprobs.shape[1]
    ways: dict[str, list[int]] = {"greedy": [], "filtered": [], "plain": []}
    for row, s in enumerate(settings):
        is_filtered = s.top_p < 1 or s.min_p > 0 or 0 < s.top_k < vocabulary
        ways["greedy" if greedy[row] else "filtered" if is_filtered else "plain"].append(row)
    ids = torch.empty(len(settings), dtype=torch.int64, device=logprobs.device)
    for way, rows in ways.items():
        if rows:
            some = logprobs if len(rows) == len(settings) else logprobs[rows]
            numbers = [uniforms[row] for row in rows]
            if way == "greedy":
                drawn = some.argmax(dim=-1)
            elif way == "filtered":
                drawn = _draw_filtered(some, [settings[row] for row in rows], numbers)
            else:
                drawn = _draw_plain(some, numbers)
            ids[rows] = drawn
    return ids


def _draw_plain(logprobs: Tensor, uniforms: Sequence[float]) -> Tensor:
    """Apply `_invert` to the whole vocabulary."""
    if logprobs.device.type != "cpu":
        return _invert(logprobs.exp(), uniforms)
    # Row by row: the sums of one row fit into a core's cache; those of a batch do not.
    return torch.cat([_invert(logprobs[n, None].exp(), [uniform]) for n, uniform in enumerate(uniforms)])


def _draw_filtered(logprobs: Tensor, settings: Sequence[Sampling], uniforms: Sequence[float]) -> Tensor:
    """Apply `_invert` to the candidates that pass the filters, in vocabulary order."""
    candidates, ids, keep = filter_candidates(logprobs, settings)
    ids, order = ids.sort(dim=-1)
    weights = (candidates.exp() * keep).gather(1, order)
    return ids.gather(1, _invert(weights, uniforms)[:, None])[:, 0]


def filter_candidates(logprobs: Tensor, settings: Sequence[Sampling]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the W most likely tokens of each row, in descending order: logprobs, ids and a mask of those
    that pass the filters, each [R, W].

    The filters are top-k, then top-p of the remaining mass, and min-p relative to the most likely token.
    Tokens beyond W do not pass.
    """
    vocabulary = logprobs.shape[1]
    top_k = [s.top_k if 0 < s.top_k < vocabulary else vocabulary for s in settings]
    limit = _column(top_k, logprobs)
    # 2 in place of 1: rounding must not remove a token.
    top_p = _column([s.top_p if s.top_p < 1 else 2.0 for s in settings], logprobs)
    min_p = _column([s.min_p for s in settings], logprobs)
    width = max([k + 1 if k < vocabulary else _SORTED_WIDTH for k in top_k])
    width = min(vocabulary, width)
    while True:
        candidates, order = logprobs.topk(width)
        inside = torch.arange(width, device=logprobs.device) < limit
        probabilities = candidates.exp() * inside
        mass_before = probabilities.cumsum(dim=-1) - probabilities
        total = torch.where(limit < vocabulary, probabilities.sum(dim=-1, keepdim=True), 1.0)
        keep = inside & (mass_before < top_p * total) & (candidates >= candidates[:, :1] + min_p.log())
        if width == vocabulary or not keep[:, -1].any():
            return candidates, order, keep
        width = vocabulary


def _invert(weights: Tensor, uniforms: Sequence[float]) -> Tensor:
    """First column [B] at which the cumulative weight exceeds uniform x total. Its own weight is never
    zero."""
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    target = torch.tensor(uniforms, dtype=torch.float64, device=weights.device)[:, None] * total
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    ids = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return ids.clamp_(max=weights.shape[1] - 1)  # out of range only if the logits are not finite


def _top_logprobs(logprobs: Tensor, settings: Sequence[Sampling]) -> list[tuple[TopLogprob, ...]]:
    most = min(max(s.top_logprobs for s in settings), logprobs.shape[1])
    if most == 0:
        return [()] * len(settings)
    values, ids = logprobs.topk(most)
    rows = zip(ids.tolist(), values.tolist(), settings, strict=True)
    return [tuple(map(TopLogprob, i[: s.top_logprobs], v[: s.top_logprobs])) for i, v, s in rows]


def _column(numbers: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=like.dtype, device=like.device)[:, None]


@dataclass(frozen=True, slots=True)
class History:
    """Token ids that a call has seen: the ids of its prompt, and how often it sampled each id."""

    prompt: frozenset[int]
    sampled: Counter[int]
    stops: tuple[int, ...] = ()
    """Stop tokens, suppressed until ``min_tokens`` is reached."""
    grammar: Grammar | None = None
    """Constraint on the reply; None: unconstrained."""


def adjust(logits: Tensor, settings: Sequence[Sampling], histories: Sequence[History | None]) -> Tensor:
    """Return logits [B, V] with each row's bias, penalties and grammar applied.

    The order is vLLM's, so that engines agree. ``histories`` has B items, None for rows without adjustments.
    """
    if all(history is None for history in histories):
        return logits
    logits = logits.clone()
    for row, sampling, history in zip(logits, settings, histories, strict=True):
        if history is not None:
            _adjust_row(row, sampling, history)
    return logits


def _adjust_row(row: Tensor, sampling: Sampling, history: History) -> None:
    """Adjust ``row`` [V] in place."""
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
