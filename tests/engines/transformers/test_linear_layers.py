from __future__ import annotations

import pytest
import torch
from torch import nn

from service.engines.transformers.lora import AdapterLinear, AdapterRows, Lora
from service.engines.transformers.weight_loading import (
    PackedLinear,
    can_pack,
    pack_linears,
)

needs_bfloat16 = pytest.mark.skipif(
    not can_pack(torch.device("cpu"), torch.bfloat16), reason="oneDNN has no bfloat16 on this CPU"
)


@needs_bfloat16
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(48, 96), (64, 365), (7, 5)])
@torch.inference_mode()
def test_packed_layer_matches_linear(bias: bool, inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias=bias).bfloat16()
    packed = PackedLinear(linear)
    for tokens in (1, 3, 8, 100):
        x = torch.randn(1, tokens, inputs).bfloat16()
        exact = nn.functional.linear(x.float(), linear.weight.float(), linear.bias.float() if bias else None)
        found = packed(x)
        assert found.shape == exact.shape
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), exact, atol=2e-2, rtol=1e-2)


@needs_bfloat16
@torch.inference_mode()
def test_packed_layer_accepts_a_new_weight() -> None:
    first, second = (nn.Linear(16, 24).bfloat16() for _ in range(2))
    packed, x = PackedLinear(first), torch.randn(4, 16).bfloat16()
    packed.pack(second.weight)
    second.bias = first.bias
    torch.testing.assert_close(packed(x), second(x), atol=2e-2, rtol=1e-2)


def test_packs_only_linear_layers() -> None:
    model = nn.Sequential(nn.Embedding(8, 16), nn.Sequential(nn.Linear(16, 16), nn.ReLU()), nn.LayerNorm(16))
    pack_linears(model.bfloat16())
    kinds = [type(module).__name__ for module in model.modules()]
    assert kinds == ["Sequential", "Embedding", "Sequential", "PackedLinear", "ReLU", "LayerNorm"]


def test_packs_only_bfloat16_on_the_cpu() -> None:
    assert not can_pack(torch.device("cpu"), torch.float32)
    assert not can_pack(torch.device("cuda"), torch.bfloat16)


@torch.inference_mode()
def test_adapters_apply_to_their_own_rows() -> None:
    torch.manual_seed(0)
    base, rows = nn.Linear(6, 5), AdapterRows()
    loras = {name: Lora(torch.randn(6, 2), torch.randn(2, 5)) for name in ("a", "b")}
    layer, x = AdapterLinear(base, loras, rows), torch.randn(1, 7, 6)
    torch.testing.assert_close(layer(x), base(x))
    rows.groups = {"a": torch.tensor([1, 2]), "b": torch.tensor([5]), "not in this layer": torch.tensor([0])}
    expected = base(x)
    expected[0, 1:3] += x[0, 1:3] @ loras["a"].a @ loras["a"].b
    expected[0, 5] += x[0, 5] @ loras["b"].a @ loras["b"].b
    torch.testing.assert_close(layer(x), expected)
