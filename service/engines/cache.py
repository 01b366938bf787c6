"""Keys and values of all slots, one tensor pair per layer, written in place."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST = 256


class KVCache:
    """Per layer two tensors [slots, kv_heads, capacity, head_dim], made at the first write.

    The capacity doubles when a sequence outgrows it, so a long context costs memory only once it is used.
    What lies beyond a slot's length is finite (zeros or old values): attention masks it, and a mask
    would not hide a NaN.
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
        """Store [kv_heads, T, head_dim] at ``slots`` [T], ``positions`` [T]; returns the whole layer."""
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
        """Zero one slot, or all: gets rid of values that are not finite."""
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
