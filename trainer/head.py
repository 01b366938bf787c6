"""The LM head in slices of the vocabulary: per-token numbers without logits of size [tokens, vocabulary].

The loss needs four numbers a token. Both passes go over the vocabulary slice by slice, so at most one tile of
[N, slice] exists at a time. The forward pass keeps a running log-sum-exp; the backward pass makes each tile
again and turns it, in place, into the gradient of its logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

MAX_TILE_ELEMENTS = 1 << 24
"""Entries of one tile: 64 MiB in float32."""


class HeadOutput(NamedTuple):
    """Numbers for N tokens, each [N] in float32 (float64 where the hidden states are), all differentiable.

    A NamedTuple, so that FSDP finds the tensors in a module's output.
    """

    log_probs: Tensor
    """Log-probability of the sampled token."""
    execute_log_probs: Tensor
    """Log-probability of the execute marker."""
    execute_logits: Tensor
    """Logit of the marker, after the temperature."""
    entropy: Tensor
    """Entropy of the whole distribution, in nats."""


def token_statistics(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    marker_id: int,
    *,
    temperature: float = 1.0,
    max_tile_elements: int = MAX_TILE_ELEMENTS,
) -> HeadOutput:
    """What the loss needs to know about the logits ``hidden @ weight.T / temperature``.

    Pass only positions that the loss counts: masked ones cost as much as any.

    Logits are computed in float32 from bfloat16 operands too, whatever autocast says: rounded to bfloat16
    they are off by more than a policy ratio can bear.

    Args:
        hidden: [N, H] last hidden states, at the positions that predict ``ids``.
        weight: [V, H] weight of the LM head, tied to the embeddings or not; an unsharded tensor.
        ids: [N] int64, the sampled tokens.
        marker_id: id of the execute marker.
        temperature: what the logits are divided by; above 0.
        max_tile_elements: bound on the entries of a tile, and so on the extra memory.

    Raises:
        ValueError: a shape, an id or the temperature does not fit; the message names the argument.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden [N, H] and weight [V, H] must share H, got {list(hidden.shape)} and {list(weight.shape)}"
        )
    if ids.shape != hidden.shape[:1] or ids.dtype != torch.int64:
        raise ValueError(f"ids must be int64 [{hidden.shape[0]}], got {ids.dtype} {list(ids.shape)}")
    if not 0 <= marker_id < weight.shape[0]:
        raise ValueError(f"marker_id must lie in the vocabulary of {weight.shape[0]}, got {marker_id}")
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if isinstance(weight, DTensor):
        raise ValueError("weight is sharded: call the head inside the wrapped module's forward (PolicyModel)")
    outputs = _Statistics.apply(hidden, weight, ids, marker_id, temperature, max_tile_elements)  # type: ignore[no-untyped-call]
    return HeadOutput(*cast("tuple[Tensor, Tensor, Tensor, Tensor]", outputs))


class PolicyModel(nn.Module):
    """A causal LM whose forward pass ends in :func:`token_statistics`.

    Wrap *this* module in DDP or FSDP: they gather the head's weight around ``forward`` only.
    """

    def __init__(self, model: nn.Module) -> None:
        """``model``: a Hugging Face causal LM whose head has no bias (PEFT: its ``get_base_model()``)."""
        super().__init__()
        if getattr(cast("Any", model).get_output_embeddings(), "bias", None) is not None:
            raise ValueError("model has a bias in its LM head, which the chunked head does not know")
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        targets: Tensor,
        marker_id: int,
        temperature: float = 1.0,
    ) -> HeadOutput:
        """Statistics of ``input_ids[:, 1:][targets[:, 1:]]``, in row-major order.

        Args:
            input_ids: [B, T] int64.
            attention_mask: [B, T]; 0 on padding.
            targets: [B, T] bool; the tokens that the loss counts. The first column is never one.
            marker_id: id of the execute marker.
            temperature: as it was when the tokens were sampled.
        """
        model = cast("Any", self.model)
        states = model.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        chosen = targets[:, 1:]
        return token_statistics(
            states[:, :-1][chosen],
            model.get_output_embeddings().weight,
            input_ids[:, 1:][chosen],
            marker_id,
            temperature=temperature,
        )


class _Statistics(torch.autograd.Function):
    """Gradient of the logits of a row, with ``p`` their softmax and ``g`` the outputs' gradients:

    ``g_log_prob (e_token - p) + g_execute (e_x - p) + g_logit e_x - g_entropy p (log p + entropy)``
    """

    @staticmethod
    @torch.no_grad()
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        ids: Tensor,
        marker_id: int,
        temperature: float,
        max_tile_elements: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n = hidden.shape[0]
        operand = _operand(hidden)
        dtype = torch.promote_types(operand.dtype, torch.float32)
        highest = hidden.new_full((n,), -torch.inf, dtype=dtype)
        total, weighted, token_logits, execute_logits = hidden.new_zeros((4, n), dtype=dtype)
        for start, part in _slices(weight, n, max_tile_elements):
            tile = _logits(operand, part, temperature)
            _pick(tile, ids - start, into=token_logits)
            if start <= marker_id < start + len(part):
                execute_logits.copy_(tile[:, marker_id - start])
            # Online softmax: what was summed so far is rescaled whenever a higher logit turns up.
            new_highest = torch.maximum(highest, tile.amax(1))
            shrink = (highest - new_highest).exp_()
            exponentials = (tile - new_highest[:, None]).exp_()
            total.mul_(shrink).add_(exponentials.sum(1))
            weighted.mul_(shrink).add_(torch.linalg.vecdot(exponentials, tile))
            highest = new_highest
        log_z = highest + total.log()
        entropy = log_z - weighted / total
        ctx.save_for_backward(hidden, weight, ids, log_z, entropy)
        ctx.marker_id, ctx.temperature, ctx.max_tile_elements = marker_id, temperature, max_tile_elements
        ctx.set_materialize_grads(False)
        return token_logits - log_z, execute_logits - log_z, execute_logits, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any,
        g_log_prob: Tensor | None,
        g_execute: Tensor | None,
        g_logit: Tensor | None,
        g_entropy: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, ids, log_z, entropy = ctx.saved_tensors
        zeros = torch.zeros_like(log_z)
        g_log_prob = zeros if g_log_prob is None else g_log_prob
        g_execute = zeros if g_execute is None else g_execute
        on_marker = g_execute if g_logit is None else g_execute + g_logit
        on_softmax = -(g_log_prob + g_execute)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(hidden, dtype=log_z.dtype) if needs_hidden else None
        grad_weight = torch.empty_like(weight) if needs_weight else None
        operand = _operand(hidden)
        for start, part in _slices(weight, len(ids), ctx.max_tile_elements):
            tile = _logits(operand, part, ctx.temperature).sub_(log_z[:, None])
            if g_entropy is None:
                grad = tile.exp_().mul_(on_softmax[:, None])
            else:
                factor = on_softmax[:, None] - g_entropy[:, None] * (tile + entropy[:, None])
                grad = tile.exp_().mul_(factor)
            _add(grad, ids - start, g_log_prob)
            if start <= ctx.marker_id < start + len(part):
                grad[:, ctx.marker_id - start] += on_marker
            grad = grad.div_(ctx.temperature).to(operand.dtype)
            if grad_hidden is not None:
                grad_hidden += _product(grad, part.to(operand.dtype))
            if grad_weight is not None:
                grad_weight[start : start + len(part)] = _product(grad.t(), operand)
        grad_hidden = None if grad_hidden is None else grad_hidden.to(hidden.dtype)
        return grad_hidden, grad_weight, None, None, None, None


def _slices(weight: Tensor, n: int, max_tile_elements: int) -> Iterator[tuple[int, Tensor]]:
    """(first id, [slice, H]) over the vocabulary; views, not copies."""
    size = max(1, max_tile_elements // max(n, 1))
    for start in range(0, weight.shape[0], size):
        yield start, weight[start : start + size]


def _operand(hidden: Tensor) -> Tensor:
    """The hidden states in the type that products are made in: half precision only where hardware has it."""
    half = hidden.dtype in (torch.bfloat16, torch.float16)
    return hidden.float() if half and hidden.device.type != "cuda" else hidden


def _logits(operand: Tensor, part: Tensor, temperature: float) -> Tensor:
    """[N, slice] logits after the temperature, in float32 or float64."""
    tile = _product(operand, part.to(operand.dtype).t())
    return tile if temperature == 1.0 else tile.div_(temperature)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` summed and returned in at least float32, also under autocast."""
    with torch.autocast(a.device.type, enabled=False):
        if a.dtype in (torch.bfloat16, torch.float16):
            return torch.mm(a, b, out_dtype=torch.float32)
        return a @ b


def _pick(tile: Tensor, columns: Tensor, *, into: Tensor) -> None:
    """``into[i] = tile[i, columns[i]]`` where that column lies in the tile."""
    inside = (columns >= 0) & (columns < tile.shape[1])
    values = tile.gather(1, columns.clamp(0, tile.shape[1] - 1)[:, None])[:, 0]
    into.copy_(torch.where(inside, values, into))


def _add(tile: Tensor, columns: Tensor, values: Tensor) -> None:
    """``tile[i, columns[i]] += values[i]`` where that column lies in the tile."""
    inside = (columns >= 0) & (columns < tile.shape[1])
    columns = columns.clamp(0, tile.shape[1] - 1)[:, None]
    tile.scatter_add_(1, columns, torch.where(inside, values, 0.0)[:, None])
