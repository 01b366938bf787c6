"""A model's whole weights, however training has wrapped and sharded it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@torch.no_grad()
def full_weights(model: nn.Module) -> dict[str, Tensor]:
    """Tensors by parameter name, not copied where they are whole already.

    Sharded ones are gathered, so every process must call this at the same time.

    Args:
        model: unwrapped of DDP; FSDP2 leaves names as they are.
    """
    return {name: _whole(tensor) for name, tensor in model.state_dict().items()}


def _whole(tensor: Any) -> Tensor:
    whole: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach()
