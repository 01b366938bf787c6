from __future__ import annotations

import torch

from service.engines.transformers.attention import KVCache


def filled() -> tuple[KVCache, torch.Tensor]:
    """Three slots; slot 1 holds 5 tokens."""
    cache = KVCache(slots=3, max_length=1000)
    cache.reserve(5)
    keys = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    cache.write(0, keys, -keys, torch.full((5,), 1), torch.arange(5))
    return cache, keys


def read(cache: KVCache, slot: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    nothing = torch.zeros(2, 0, 4)
    none = torch.zeros(0, dtype=torch.int64)
    keys, values = cache.write(0, nothing, nothing, none, none)
    return keys[slot, :, :length], values[slot, :, :length]


def test_capacity_doubles_and_keeps_content() -> None:
    cache, keys = filled()
    assert cache.capacity == 256
    cache.reserve(257)
    assert cache.capacity == 512
    cache.reserve(900)
    # Not 1,024: sequences have at most 1,000 tokens, rounded up to a multiple of 16.
    assert cache.capacity == 1008
    stored, values = read(cache, 1, 5)
    assert torch.equal(stored, keys)
    assert torch.equal(values, -keys)


def test_prefix_is_copied_to_one_slot_only() -> None:
    cache, keys = filled()
    cache.copy_prefix(1, 2, 3)
    assert torch.equal(read(cache, 2, 3)[0], keys[:, :3])
    assert not read(cache, 2, 5)[0][:, 3:].any()
    assert not read(cache, 0, 5)[0].any()


def test_clearing_removes_non_finite_values() -> None:
    cache, keys = filled()
    cache.write(0, keys * torch.nan, keys, torch.full((5,), 0), torch.arange(5))
    cache.clear(0)
    assert torch.equal(read(cache, 0, 5)[0], torch.zeros_like(keys))
    assert torch.equal(read(cache, 1, 5)[0], keys)
    cache.clear()
    assert not read(cache, 1, 5)[0].any()
