"""Attention over the slots of the KV cache, registered with transformers in place of the model's own.

The tokens of all sequences of a step go through the model as one row [1, T] without padding. Only attention
depends on which token belongs to which sequence; `Step` carries this information beside the inputs. The keys
and values of all slots are one tensor pair per layer, written in place (`KVCache`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from service.engines.base import EngineError

_SMALLEST = 256


class KVCache:
    """Two tensors [slots, kv_heads, capacity, head_dim] per layer, allocated at the first write.

    The capacity doubles when a sequence outgrows it, so a long context costs memory only once it is used.
    Values beyond a slot's length are always finite (zeros or stale values): attention masks them, and a mask
    does not hide a NaN.
    """

    def __init__(self, slots: int, max_length: int) -> None:
        self._slots = slots
        self._max_length = max_length
        self.capacity = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def reserve(self, length: int) -> None:
        """Make room for sequences of ``length`` tokens."""
        if length > self.capacity:
            doubled = max(_SMALLEST, 2 * self.capacity, length)
            # A multiple of 16 keeps every row aligned for the GPU's attention kernels.
            self.capacity = max(length, min(doubled, self._max_length)) + 15 & ~15
            for index, (keys, values) in self._layers.items():
                self._layers[index] = (self._grown(keys), self._grown(values))

    def write(
        self, layer: int, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store [kv_heads, T, head_dim] at ``slots`` [T], ``positions`` [T]. Return the whole layer."""
        if layer not in self._layers:
            self._layers[layer] = (self._new(keys), self._new(values))
        stored_keys, stored_values = self._layers[layer]
        stored_keys[slots, :, positions] = keys.transpose(0, 1)
        stored_values[slots, :, positions] = values.transpose(0, 1)
        return stored_keys, stored_values

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        for stored in self._tensors():
            stored[target, :, :length] = stored[source, :, :length]

    def clear(self, slot: int | None = None) -> None:
        """Zero one slot, or all of them. Removes values that are not finite."""
        for stored in self._tensors():
            (stored if slot is None else stored[slot]).zero_()

    def _tensors(self) -> list[Tensor]:
        return [stored for pair in self._layers.values() for stored in pair]

    def _new(self, like: Tensor) -> Tensor:
        heads, _, width = like.shape
        return torch.zeros(self._slots, heads, self.capacity, width, dtype=like.dtype, device=like.device)

    def _grown(self, old: Tensor) -> Tensor:
        new = self._new(old[0])
        new[:, :, : old.shape[2]] = old
        return new


NAME = "slots"


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """The first ``count`` tokens of the step: one per decoding sequence, all attended in one call.

    ``rows`` selects cache rows: a slice (a view, no copy), which may include rows of other sequences, or the
    exact indices. ``index`` [count] is the position of each token's row in the selection; None if they are
    in order. ``mask`` is [rows, 1, 1, length].
    """

    count: int
    rows: slice | Tensor
    selected: int
    index: Tensor | None
    length: int
    mask: Tensor

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float | None) -> Tensor:
        """``query`` and result: [count, kv_heads, groups, head_dim]."""
        if self.index is not None:
            query = query.new_zeros(self.selected, *query.shape[1:]).index_copy_(0, self.index, query)
        k, v = (stored[self.rows, :, : self.length] for stored in (keys, values))
        attended = F.scaled_dot_product_attention(query, k, v, attn_mask=self.mask, scale=scaling)
        return attended if self.index is None else attended[self.index]


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """As `DecodeBatch`, but each sequence is attended by itself, up to its own length: ``(row, length)``.

    Less work if lengths differ: a `DecodeBatch` is as long as its longest sequence.
    """

    sequences: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        return len(self.sequences)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float | None) -> Tensor:
        """``query`` and result: [count, kv_heads, groups, head_dim]."""
        attended = [
            F.scaled_dot_product_attention(
                query[n : n + 1], keys[row, None, :, :length], values[row, None, :, :length], scale=scaling
            )
            for n, (row, length) in enumerate(self.sequences)
        ]
        return torch.cat(attended)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens ``start:stop`` of the step, a piece of one prompt. ``mask``: [1, 1, groups * tokens, length]."""

    start: int
    stop: int
    slot: int
    length: int
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """Placement of the T tokens of one forward pass: ``slots`` [T] and ``positions`` [T], int64."""

    cache: KVCache
    slots: Tensor
    positions: Tensor
    singles: DecodeBatch | DecodeRows | None
    chunks: tuple[Chunk, ...]


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    step: Step,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_kwargs: object,
) -> tuple[Tensor, None]:
    """Adapter of `attend` to the signature that transformers calls.

    ``query`` is [1, heads, T, head_dim], ``key`` and ``value`` are [1, kv_heads, T, head_dim].

    Returns:
        [1, T, heads, head_dim] and no weights, as transformers' attention functions do.

    Raises:
        EngineError: the model uses another kind of attention.
    """
    asked = (attention_mask, sliding_window, softcap, getattr(module, "sinks", None))
    if any(option is not None for option in asked):
        raise EngineError("the embedded engine serves plain causal attention only; use the vLLM engine")
    layer = cast(int, module.layer_idx)
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return attend(query, key, value, step, layer, scaling)[None], None


def attend(
    query: Tensor, key: Tensor, value: Tensor, step: Step, layer: int, scaling: float | None
) -> Tensor:
    """Write ``key`` and ``value`` [T, kv_heads, head_dim] to the cache, then attend.

    ``query`` and the result are [T, heads, head_dim]. Query heads that share a key head are laid out as if
    they were positions, so that keys and values are never repeated.
    """
    keys, values = step.cache.write(
        layer, key.transpose(0, 1), value.transpose(0, 1), step.slots, step.positions
    )
    tokens, heads, width = query.shape
    kv_heads = key.shape[1]
    grouped = query.reshape(tokens, kv_heads, heads // kv_heads, width)
    singles = step.singles
    if singles is not None and not step.chunks:
        output = singles.attend(grouped, keys, values, scaling)
    else:
        output = query.new_empty(*grouped.shape[:3], value.shape[-1])
        if singles is not None:
            output[: singles.count] = singles.attend(grouped[: singles.count], keys, values, scaling)
        for chunk in step.chunks:
            here = slice(chunk.start, chunk.stop)
            output[here] = _attend_chunk(grouped[here], keys, values, chunk, scaling)
    return output.reshape(tokens, heads, -1)


def _attend_chunk(query: Tensor, keys: Tensor, values: Tensor, chunk: Chunk, scaling: float | None) -> Tensor:
    """``query`` and result: [tokens, kv_heads, groups, head_dim]."""
    tokens, kv_heads, groups, width = query.shape
    rows = query.permute(1, 2, 0, 3).reshape(1, kv_heads, groups * tokens, width)
    k, v = (stored[chunk.slot, None, :, : chunk.length] for stored in (keys, values))
    attended = F.scaled_dot_product_attention(rows, k, v, attn_mask=chunk.mask, scale=scaling)
    return attended.view(kv_heads, groups, tokens, -1).permute(2, 0, 1, 3)


AttentionInterface.register(NAME, slot_attention)
