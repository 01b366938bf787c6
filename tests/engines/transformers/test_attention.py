from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.engines.base import EngineError
from service.engines.transformers.attention import (
    Chunk,
    DecodeBatch,
    DecodeRows,
    KVCache,
    Step,
    slot_attention,
)

HEADS, KV_HEADS, WIDTH, LENGTH = 6, 2, 8, 16


class Layer(nn.Module):
    layer_idx = 0


def mask(stops: list[int]) -> Tensor:
    hidden = torch.arange(LENGTH) >= torch.tensor(stops)[:, None]
    return torch.zeros(len(stops), LENGTH).masked_fill_(hidden, -torch.inf)


SINGLES = {
    "rows as a view": DecodeBatch(
        2, slice(1, 4), 3, torch.tensor([0, 2]), LENGTH, mask([7, 1, 4])[:, None, None]
    ),
    "rows copied": DecodeBatch(2, torch.tensor([1, 3]), 2, None, LENGTH, mask([7, 4])[:, None, None]),
    "row by row": DecodeRows(((1, 7), (3, 4))),
}


@pytest.mark.parametrize("way", SINGLES)
def test_attention_is_causal_within_each_sequence(way: str) -> None:
    """Slots 1 and 3 decode one token each, slot 0 prefills four tokens, slot 2 is idle."""
    random = torch.Generator().manual_seed(0)
    cached = {
        slot: torch.randn(2, KV_HEADS, count, WIDTH, generator=random)
        for slot, count in {1: 6, 3: 3, 0: 9}.items()
    }
    cache = KVCache(slots=4, max_length=64)
    cache.reserve(LENGTH)
    for slot, (k, v) in cached.items():
        cache.write(0, k, v, torch.full((k.shape[1],), slot), torch.arange(k.shape[1]))
    slots, positions = torch.tensor([1, 3, 0, 0, 0, 0]), torch.tensor([6, 3, 9, 10, 11, 12])
    query = torch.randn(1, HEADS, 6, WIDTH, generator=random)
    new = torch.randn(2, 1, KV_HEADS, 6, WIDTH, generator=random)
    chunk = Chunk(2, 6, 0, LENGTH, mask([10, 11, 12, 13] * (HEADS // KV_HEADS))[None, None])
    step = Step(cache, slots, positions, SINGLES[way], (chunk,))

    output, _ = slot_attention(Layer(), query, new[0], new[1], None, step=step)

    first = {1: 0, 3: 1, 0: 2}  # where each sequence's new tokens start
    for token, slot in enumerate(slots.tolist()):
        ahead = new[:, 0, :, first[slot] : token + 1]
        k, v = torch.cat([cached[slot], ahead], dim=2).repeat_interleave(HEADS // KV_HEADS, dim=1)
        expected = F.scaled_dot_product_attention(query[0, :, token : token + 1], k, v)[:, 0]
        torch.testing.assert_close(output[0, token], expected)


@pytest.mark.parametrize("option", ["sliding_window", "softcap"])
def test_rejects_other_kinds_of_attention(option: str) -> None:
    x = torch.zeros(1, 1, 1, 1)
    step = Step(KVCache(1, 16), torch.tensor([0]), torch.tensor([0]), None, ())
    with pytest.raises(EngineError, match="plain causal attention"):
        slot_attention(Layer(), x, x, x, None, step=step, **{option: 4})  # type: ignore[arg-type]
