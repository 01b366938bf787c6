"""What is sent: the weights of the rollout that is about to begin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """As vLLM's ``ParamMeta``."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class Source:
    """A ``WeightSource`` of vLLM's (``vllm.distributed.weight_transfer``), which is structural.

    ``weights`` are set before each sending, each storage once.
    """

    def __init__(self) -> None:
        self.weights: Mapping[str, Tensor] = {}

    def metadata(self) -> list[TensorInfo]:
        return [TensorInfo(name, weight.dtype, tuple(weight.shape)) for name, weight in self.weights.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self.weights.items())

    def update_info(self) -> dict[str, list[object]]:
        """What the workers are told before the tensors come."""
        return {
            "names": list(self.weights),
            "dtype_names": [str(weight.dtype).removeprefix("torch.") for weight in self.weights.values()],
            "shapes": [list(weight.shape) for weight in self.weights.values()],
        }
