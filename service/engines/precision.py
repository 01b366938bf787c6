"""The type of weights and cache that ``dtype=auto`` stands for."""

from __future__ import annotations

from typing import Any, Final, Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

BFLOAT16_FROM: Final = 20_000_000
"""Parameters from which bfloat16 decodes faster than float32 on a CPU that computes in it. Below, the time
goes into calls and not into weights (`benchmarks/engine.py --dtypes`)."""


def resolve_dtype(dtype: Dtype, device: torch.device, parameters: int) -> Dtype:
    """The type to load a model in; ``auto`` remains only on a GPU, where it means the checkpoint's own.

    On a CPU, ``auto`` is bfloat16 if the CPU has instructions for it (AVX512-BF16 or AMX) and the model has
    at least ``BFLOAT16_FROM`` parameters, else float32. The choice depends on nothing else, so a model has
    the same type at every start on one machine.
    """
    if dtype != "auto" or device.type != "cpu":
        return dtype
    return "bfloat16" if parameters >= BFLOAT16_FROM and has_bfloat16() else "float32"


def has_bfloat16() -> bool:
    """Whether this machine's CPU has instructions for products of bfloat16 numbers."""
    return any(
        getattr(torch.cpu, name, bool)()  # a private name, which another version of torch may not have
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def without_weights(config: PretrainedConfig) -> nn.Module:
    """A causal LM of this configuration on the device ``meta``: its modules, and no memory for weights."""
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model: nn.Module = auto.from_config(config)
    return model


def count_parameters(config: PretrainedConfig) -> int:
    """Parameters of a causal LM of this configuration, tied ones once, without loading its weights."""
    model = without_weights(config)
    return sum(weight.numel() for weight in model.parameters())
