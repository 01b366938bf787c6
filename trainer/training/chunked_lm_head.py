"""The LM head computed in tiles: per-token statistics without logits of size [tokens, vocabulary].

The loss needs four numbers per token. Both passes iterate over slices of the vocabulary, and within a slice
over blocks of tokens, so at most a tile of [block, slice] exists at a time. The forward pass keeps a running
log-sum-exp. The backward pass recomputes each tile and turns it, in place, into the gradient of its logits.
This costs a fourth matrix product besides the usual three, but avoids several passes over
[tokens, vocabulary] in main memory, since a tile stays in the processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trainer.training.lora import base_weight, trained_rows

MAX_TILE_ELEMENTS = 1 << 24
"""Entries of one tile on a GPU: 64 MiB in float32, large enough to keep kernel launches few."""
CPU_TILE_ELEMENTS = 1 << 22
"""Entries of one tile on a CPU: 16 MiB, which fits the last-level cache and lets malloc reuse its pages."""


_EXCLUDED = -1e30
"""Logit of an excluded token: finite, since products of 0 and infinity would not be numbers."""


class HeadOutput(NamedTuple):
    """Statistics of N tokens, each [N] in float32 (float64 if the hidden states are), all differentiable.

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
    max_tile_elements: int | None = None,
    row_ids: Sequence[int] = (),
    rows: Tensor | None = None,
    without_marker: bool = False,
) -> HeadOutput:
    """Return the statistics of the logits ``hidden @ weight.T / temperature`` that the loss needs.

    Pass only the positions that count in the loss: masked ones cost just as much.

    Logits are computed in float32 even from bfloat16 operands and under autocast: rounding them to bfloat16
    would cause too large an error in the policy ratio.

    Args:
        hidden: [N, H] last hidden states, at the positions that predict ``ids``.
        weight: [V, H] unsharded weight of the LM head; may be tied to the embeddings.
        ids: [N] int64, the sampled tokens.
        marker_id: id of the execute marker.
        temperature: divisor of the logits; above 0.
        max_tile_elements: maximum entries of a tile, which limits the extra memory: at most three tiles exist
            at a time. Default: depends on the device.
        row_ids: ids whose rows of ``weight`` are replaced by ``rows``.
        rows: [R, H], one per id, in any float dtype; rounded to that of ``weight``. Their gradient costs R
            matrix-vector products instead of the gradient of the whole weight.
        without_marker: leave the marker out of the softmax, as in the low level of a two-level policy. The
            statistics of the marker itself then mean nothing and have no gradient.

    Raises:
        ValueError: a shape, an id or the temperature is invalid; the message names the argument.
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
    if max_tile_elements is None:
        max_tile_elements = CPU_TILE_ELEMENTS if hidden.device.type == "cpu" else MAX_TILE_ELEMENTS
    if len(row_ids) != (0 if rows is None else len(rows)):
        raise ValueError(f"rows must have one row for each of the {len(row_ids)} row_ids")
    outputs = _Statistics.apply(  # type: ignore[no-untyped-call]
        hidden, weight, rows, ids, marker_id, temperature, max_tile_elements, tuple(row_ids), without_marker
    )
    return HeadOutput(*cast("tuple[Tensor, Tensor, Tensor, Tensor]", outputs))


class PolicyModel(nn.Module):
    """A causal LM whose forward pass ends in :func:`token_statistics`.

    Wrap *this* module in DDP or FSDP, because they gather the head's weight only around ``forward``.
    """

    def __init__(self, model: nn.Module) -> None:
        """Wrap a Hugging Face causal LM without a bias in its head (PEFT: its ``get_base_model()``).

        Raises:
            ValueError: the head has a bias.
        """
        super().__init__()
        if any(name.endswith("bias") for name, _ in _head_of(model).named_parameters()):
            raise ValueError("model has a bias in its LM head, which the chunked head does not support")
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        targets: Tensor,
        marker_id: int,
        temperature: float = 1.0,
    ) -> HeadOutput:
        """Return the statistics of ``input_ids[:, 1:][targets[:, 1:]]``, in row-major order.

        Args:
            input_ids: [B, T] int64.
            attention_mask: [B, T]; 0 on padding.
            targets: [B, T] bool; True on tokens that count in the loss. The first column is ignored.
            marker_id: id of the execute marker.
            temperature: the temperature at which the tokens were sampled.
        """
        model = cast("Any", self.model)
        states = model.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        chosen = targets[:, 1:]
        head = _head_of(model)
        row_ids, rows = trained_rows(head) or ((), None)
        hidden, ids = states[:, :-1][chosen], input_ids[:, 1:][chosen]
        execute_head: ExecuteHeadModule | None = getattr(model, "execute_head", None)
        statistics = token_statistics(
            hidden,
            base_weight(head),
            ids,
            marker_id,
            temperature=temperature,
            row_ids=row_ids,
            rows=rows,
            without_marker=execute_head is not None,
        )
        if execute_head is None:
            return statistics
        return two_level_statistics(statistics, execute_head(hidden) / temperature, ids == marker_id)


class ExecuteHeadModule(nn.Module):
    """The trainable execute head; see `service.engines.execute_head`. Computes in float32."""

    marker_id: Tensor

    def __init__(self, width: int, marker_id: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("marker_id", torch.tensor(marker_id))

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [N] of the decision to execute, from hidden states [N, H]."""
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            return hidden.to(dtype) @ self.weight.to(dtype) + self.bias.to(dtype)


def two_level_statistics(low_level: HeadOutput, decisions: Tensor, is_execute: Tensor) -> HeadOutput:
    """Return the statistics of the explicit two-level policy.

    Args:
        low_level: of the softmax without the marker.
        decisions: [N], logit of the decision to execute.
        is_execute: [N] bool; True if the sampled token is the marker.
    """
    execute, write = torch.nn.functional.logsigmoid(decisions), torch.nn.functional.logsigmoid(-decisions)
    text = low_level.log_probs.masked_fill(is_execute, 0.0)
    share = decisions.sigmoid()
    decision_entropy = -(share * execute + (1 - share) * write)
    return HeadOutput(
        torch.where(is_execute, execute, write + text),
        execute,
        decisions,
        decision_entropy + (1 - share) * low_level.entropy,
    )


def _head_of(model: nn.Module) -> nn.Module:
    head: nn.Module = cast("Any", model).get_output_embeddings()
    return head


class _Statistics(torch.autograd.Function):
    """Autograd function of the head.

    With ``p`` the softmax of a row and ``g_*`` the gradients of the outputs, the gradient of the logits is

    ``g_log_prob (e_token - p) + g_execute (e_x - p) + g_logit e_x - g_entropy p (log p + entropy)``
    """

    @staticmethod
    @torch.no_grad()
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        rows: Tensor | None,
        ids: Tensor,
        marker_id: int,
        temperature: float,
        max_tile_elements: int,
        row_ids: Sequence[int],
        without_marker: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n = hidden.shape[0]
        operand = _operand(hidden)
        dtype = torch.promote_types(operand.dtype, torch.float32)
        highest = hidden.new_full((n,), -torch.inf, dtype=dtype)
        total, weighted, token_logits, execute_logits = hidden.new_zeros((4, n), dtype=dtype)
        for start, part, blocks in _slices(weight, n, max_tile_elements, row_ids, rows):
            columns = part.to(operand.dtype).t()
            for block in blocks:
                tile = _logits(operand[block], columns, temperature)
                if without_marker and start <= marker_id < start + len(part):
                    tile[:, marker_id - start] = _EXCLUDED
                _pick(tile, ids[block] - start, into=token_logits[block])
                if start <= marker_id < start + len(part):
                    execute_logits[block] = tile[:, marker_id - start]
                # Online softmax: rescale the running sums when a higher logit appears.
                before = highest[block]
                now = torch.maximum(before, tile.amax(1))
                shrink = (before - now).exp_()
                exponentials = (tile - now[:, None]).exp_()
                total[block].mul_(shrink).add_(exponentials.sum(1))
                weighted[block].mul_(shrink).add_(torch.linalg.vecdot(exponentials, tile))
                before.copy_(now)
        log_z = highest + total.log()
        entropy = log_z - weighted / total
        ctx.save_for_backward(hidden, weight, rows, ids, log_z, entropy)
        ctx.row_ids, ctx.without_marker = row_ids, without_marker
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
        hidden, weight, rows, ids, log_z, entropy = ctx.saved_tensors
        zeros = torch.zeros_like(log_z)
        g_log_prob = zeros if g_log_prob is None else g_log_prob
        g_execute = zeros if g_execute is None else g_execute
        on_marker = g_execute if g_logit is None else g_execute + g_logit
        on_softmax = -(g_log_prob + g_execute)
        needs_hidden, needs_weight, needs_rows = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden, dtype=log_z.dtype) if needs_hidden else None
        grad_weight = torch.empty_like(weight) if needs_weight else None
        grad_rows = torch.zeros_like(rows, dtype=log_z.dtype) if needs_rows else None
        operand = _operand(hidden)
        for start, part, blocks in _slices(weight, len(ids), ctx.max_tile_elements, ctx.row_ids, rows):
            part = part.to(operand.dtype)
            grad_part = torch.zeros_like(part, dtype=log_z.dtype) if needs_weight else None
            for block in blocks:
                tile = _logits(operand[block], part.t(), ctx.temperature).sub_(log_z[block, None])
                has_marker = start <= ctx.marker_id < start + len(part)
                if ctx.without_marker and has_marker:
                    tile[:, ctx.marker_id - start] = _EXCLUDED
                factor = on_softmax[block, None]
                if g_entropy is not None:
                    factor = factor - g_entropy[block, None] * (tile + entropy[block, None])
                grad = tile.exp_().mul_(factor)
                _add(grad, ids[block] - start, g_log_prob[block])
                if ctx.without_marker and has_marker:
                    grad[:, ctx.marker_id - start] = 0
                elif has_marker:
                    grad[:, ctx.marker_id - start] += on_marker[block]
                if ctx.temperature != 1.0:
                    grad.div_(ctx.temperature)
                if grad_rows is not None:
                    for index, column in _inside(ctx.row_ids, start, len(part)):
                        grad_rows[index] += grad[:, column] @ operand[block].to(grad.dtype)
                grad = grad.to(operand.dtype)
                if grad_hidden is not None:
                    _accumulate(grad_hidden[block], grad, part)
                if grad_part is not None:
                    _accumulate(grad_part, grad.t(), operand[block])
            if grad_weight is not None and grad_part is not None:
                for _, column in _inside(ctx.row_ids, start, len(part)):
                    grad_part[column] = 0
                grad_weight[start : start + len(part)] = grad_part
        grad_hidden = None if grad_hidden is None else grad_hidden.to(hidden.dtype)
        grad_rows = None if grad_rows is None else grad_rows.to(rows.dtype)
        return grad_hidden, grad_weight, grad_rows, None, None, None, None, None, None


def _slices(
    weight: Tensor, n: int, max_tile_elements: int, row_ids: Sequence[int], rows: Tensor | None
) -> Iterator[tuple[int, Tensor, Sequence[slice]]]:
    """Yield (first id, [slice, H], blocks of tokens) over the vocabulary.

    Slices are views, copied only if one of their rows is replaced. Tiles are nearly square, the fastest shape
    for matrix products.
    """
    height = max(1, min(n, math.isqrt(max_tile_elements)))
    width = max(1, max_tile_elements // height)
    blocks = [slice(first, min(first + height, n)) for first in range(0, n, height)]
    for start in range(0, weight.shape[0], width):
        part = weight[start : start + width]
        if rows is not None and (inside := list(_inside(row_ids, start, len(part)))):
            part = part.clone()
            for index, column in inside:
                part[column] = rows[index].to(part.dtype)
        yield start, part, blocks


def _inside(row_ids: Sequence[int], start: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield (index in ``row_ids``, position in the slice) of the replaced rows inside a slice."""
    for index, row_id in enumerate(row_ids):
        if start <= row_id < start + length:
            yield index, row_id - start


def _operand(hidden: Tensor) -> Tensor:
    """Return the hidden states in the dtype of the matrix products: half precision only on CUDA."""
    return hidden.float() if _is_half(hidden) and hidden.device.type != "cuda" else hidden


def _logits(rows: Tensor, columns: Tensor, temperature: float) -> Tensor:
    """Return ``rows @ columns / temperature`` in float32 or float64, even under autocast."""
    with torch.autocast(rows.device.type, enabled=False):
        tile = torch.mm(rows, columns, out_dtype=torch.float32) if _is_half(rows) else rows @ columns
    return tile if temperature == 1.0 else tile.div_(temperature)


def _accumulate(into: Tensor, a: Tensor, b: Tensor) -> None:
    """Compute ``into += a @ b`` with ``into`` in float32 or float64, even under autocast."""
    with torch.autocast(a.device.type, enabled=False):
        if _is_half(a):
            into += torch.mm(a, b, out_dtype=torch.float32)
        else:
            into.addmm_(a, b)


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)


def _pick(tile: Tensor, columns: Tensor, *, into: Tensor) -> None:
    """Set ``into[i] = tile[i, columns[i]]`` if that column is in the tile."""
    inside = (columns >= 0) & (columns < tile.shape[1])
    values = tile.gather(1, columns.clamp(0, tile.shape[1] - 1)[:, None])[:, 0]
    into.copy_(torch.where(inside, values, into))


def _add(tile: Tensor, columns: Tensor, values: Tensor) -> None:
    """Compute ``tile[i, columns[i]] += values[i]`` if that column is in the tile."""
    inside = (columns >= 0) & (columns < tile.shape[1])
    columns = columns.clamp(0, tile.shape[1] - 1)[:, None]
    tile.scatter_add_(1, columns, torch.where(inside, values, 0.0)[:, None])
