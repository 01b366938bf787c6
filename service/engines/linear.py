"""Linear layers of the embedded engine: weights in oneDNN's layout, and LoRA adapters chosen by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """An ``nn.Linear`` on the CPU whose weight is stored in the block layout that oneDNN computes with.

    A plain weight is put into that layout at every call, which takes longer than the product itself when a
    step has few tokens. The plain weight is not kept.

    Args:
        linear: a layer in bfloat16 or float32 on the CPU.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.pack(linear.weight.detach())

    def pack(self, weight: Tensor) -> None:
        """Take a new weight [out_features, in_features]."""
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [..., in_features] to [..., out_features]."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self.bias, "none", [], None)
        return output


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `PackedLinear` runs on this machine and is the faster way: on the CPU, in bfloat16."""
    # Not in float32: MKL's own kernels need no other layout and are as fast.
    mkldnn: Any = torch.backends.mkldnn
    if device.type != "cpu" or dtype != torch.bfloat16 or not mkldnn.is_available():
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack_linears(model: nn.Module) -> None:
    """Replace every ``nn.Linear`` below ``model`` by a `PackedLinear`."""
    for name, child in list(model.named_children()):
        if type(child) is nn.Linear:
            setattr(model, name, PackedLinear(child))
        else:
            pack_linears(child)


@dataclass(slots=True)
class AdapterRows:
    """Tokens of the current step by adapter: the rows [n], int64, that each adapter acts on.

    The runner sets it before a forward pass; the layers read it during the pass.
    """

    groups: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lora:
    """One adapter's part of one layer: ``a`` [in_features, r] and ``b`` [r, out_features], scaled."""

    a: Tensor
    b: Tensor


class AdapterLinear(nn.Module):
    """A linear layer that adds, to each token, the low-rank product of the adapter that the token asks for.

    Args:
        base: the layer itself.
        loras: by adapter name; an adapter that leaves this layer alone is not in it.
        rows: shared by all layers of the model.
    """

    def __init__(self, base: nn.Module, loras: Mapping[str, Lora], rows: AdapterRows) -> None:
        super().__init__()
        self.base = base
        self._loras = dict(loras)
        self._rows = rows

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [..., in_features] to [..., out_features], of T tokens in all."""
        output: Tensor = self.base(x)
        for lora, rows in self._active():
            delta = x.view(-1, x.shape[-1])[rows] @ lora.a @ lora.b
            output.view(-1, output.shape[-1]).index_add_(0, rows, delta)
        return output

    def _active(self) -> Iterator[tuple[Lora, Tensor]]:
        for name, rows in self._rows.groups.items():
            if (lora := self._loras.get(name)) is not None:
                yield lora, rows
