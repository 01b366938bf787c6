"""Memory of Qwen3 models on one GPU with vLLM, and the model to choose for a machine.

All numbers are computed from the shapes of the models. ``OVERHEAD_BYTES`` is an assumption.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from service.common.machine import available_memory
from service.doctor import CheckResult
from service.doctor.machine import GIB

UTILIZATION: Final = 0.9
"""Share of the GPU's memory that vLLM uses by default."""
OVERHEAD_BYTES: Final = GIB
"""Assumed memory of activations and CUDA graphs."""
MIN_TOKENS: Final = 16_384
"""Tokens of cache that a recommended model must have room for."""
_MAX_CONTEXT: Final = 32_768
_VOCABULARY: Final = 151_936
_HEAD: Final = 128
_CACHE_BYTES: Final = 2
_FLOAT32: Final = 4


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """A format of the weights of linear layers. Embeddings, LM head and norms have 16 bits in all formats."""

    suffix: str
    """Ending of the names of Qwen's checkpoints."""
    bits: float
    """Bits of a weight, with its share of the scales and zero points."""
    capability: tuple[int, int]
    """Lowest CUDA compute capability on which vLLM runs it."""


BFLOAT16: Final = WeightFormat("", 16.0, (8, 0))
FP8: Final = WeightFormat("-FP8", 8.0 + 16 / (128 * 128), (8, 0))  # scales of blocks of 128 by 128 weights
AWQ: Final = WeightFormat("-AWQ", 4.0 + (16 + 4) / 128, (7, 5))  # GPTQ with 4 bits has the same size
FORMATS: Final = (BFLOAT16, FP8, AWQ)


@dataclass(frozen=True, slots=True)
class Qwen3Size:
    """Shapes of a Qwen3 model."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int = 8
    tied: bool = False
    """The LM head is the embedding."""
    has_awq: bool = True
    """Qwen publishes a checkpoint with 4 bits."""

    @property
    def linear_parameters(self) -> int:
        attention = self.hidden * _HEAD * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def other_parameters(self) -> int:
        """Parameters of embedding, LM head and norms."""
        norms = self.layers * (2 * self.hidden + 2 * _HEAD) + self.hidden
        return _VOCABULARY * self.hidden * (1 if self.tied else 2) + norms

    @property
    def parameters(self) -> int:
        return self.linear_parameters + self.other_parameters

    def weight_bytes(self, weights: WeightFormat) -> int:
        return int(self.linear_parameters * weights.bits / 8) + 2 * self.other_parameters

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token."""
        return 2 * self.layers * self.kv_heads * _HEAD * _CACHE_BYTES


SIZES: Final = (
    Qwen3Size("Qwen3-0.6B", 1024, 3072, 28, 16, tied=True, has_awq=False),
    Qwen3Size("Qwen3-1.7B", 2048, 6144, 28, 16, tied=True, has_awq=False),
    Qwen3Size("Qwen3-4B", 2560, 9728, 36, 32, tied=True),
    Qwen3Size("Qwen3-8B", 4096, 12288, 36, 32),
    Qwen3Size("Qwen3-14B", 5120, 17408, 40, 40),
    Qwen3Size("Qwen3-32B", 5120, 25600, 64, 64),
)


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """A model on a GPU."""

    size: Qwen3Size
    weights: WeightFormat
    gpu_bytes: int

    @property
    def model(self) -> str:
        return f"Qwen/{self.size.name}{self.weights.suffix}"

    @property
    def weight_bytes(self) -> int:
        return self.size.weight_bytes(self.weights)

    @property
    def tokens(self) -> int:
        """Tokens of cache that fit beside the weights; 0 if not even the weights fit."""
        return cache_tokens(self.weight_bytes, self.size.token_bytes, self.gpu_bytes)

    @property
    def context(self) -> int:
        """Value of max_context: all of the cache for one request, at most 32,768 tokens."""
        return min(self.tokens // 1024 * 1024, _MAX_CONTEXT)

    @property
    def command(self) -> str:
        return f"IHGRPO_MAX_CONTEXT={self.context} ih-grpo serve --engine vllm --model {self.model}"


def cache_tokens(weight_bytes: int, token_bytes: int, gpu_bytes: int) -> int:
    """Return the tokens of cache that fit beside the weights; 0 if not even the weights fit."""
    room = int(gpu_bytes * UTILIZATION) - OVERHEAD_BYTES - weight_bytes
    return max(room, 0) // token_bytes


def plans(gpu_bytes: int, capability: tuple[int, int] = (8, 9)) -> Iterator[GpuPlan]:
    """Yield all models that vLLM can run on the GPU, whether or not they fit; the best choice first."""
    for size in reversed(SIZES):
        for weights in FORMATS:
            if capability >= weights.capability and (weights is not AWQ or size.has_awq):
                yield GpuPlan(size, weights, gpu_bytes)


def recommend(gpu_bytes: int, capability: tuple[int, int] = (8, 9)) -> GpuPlan | None:
    """Return the largest model with room for ``MIN_TOKENS``, in the format with the most bits; or None."""
    return next((plan for plan in plans(gpu_bytes, capability) if plan.tokens >= MIN_TOKENS), None)


def suggest() -> CheckResult:
    """Suggest a Qwen3 model and settings for this machine: its first GPU, or its memory without one."""
    if gpu := gpu_memory():
        return suggest_for_gpu(gpu, capability())
    return suggest_for_memory(available_memory())


def gpu_memory() -> int:
    """Return the memory of the first CUDA GPU in bytes; 0 without one."""
    try:
        import torch
    except ModuleNotFoundError:
        return 0
    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else 0


def capability() -> tuple[int, int]:
    """Return the compute capability of the first CUDA GPU."""
    import torch

    return torch.cuda.get_device_capability(0)


def suggest_for_memory(free: int) -> CheckResult:
    """Suggest a model for the embedded engine on the CPU, whose weights use at most half of ``free`` bytes.

    Larger models than 1.7B are too slow there for interactive use.
    """
    fitting = [size for size in SIZES[:2] if _FLOAT32 * size.parameters <= free // 2]
    if not fitting:
        found = f"no Qwen3 model fits into half of the {free / GIB:.1f} GiB of available memory"
        return CheckResult("suggestion", "ok", found)
    size = fitting[-1]
    found = (
        f"Qwen/{size.name} on the CPU: up to {_FLOAT32 * size.parameters / GIB:.1f} GiB of weights (computed)"
    )
    return CheckResult("suggestion", "ok", found, f"ih-grpo serve --model Qwen/{size.name}")


def suggest_for_gpu(gpu_bytes: int, capability: tuple[int, int]) -> CheckResult:
    """Suggest a model for vLLM on a GPU."""
    plan = recommend(gpu_bytes, capability)
    if plan is None:
        return CheckResult(
            "suggestion", "ok", f"no Qwen3 model fits into {gpu_bytes / GIB:.0f} GiB with vLLM"
        )
    found = (
        f"{plan.model}: {plan.weight_bytes / GIB:.1f} GiB of weights, cache for about "
        f"{plan.tokens // 1000},000 tokens (computed)"
    )
    return CheckResult("suggestion", "ok", found, plan.command)


def quantization(folder: Path) -> str | None:
    """Return the method by which a checkpoint is quantised, such as ``awq``; None if it is not."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    method = (config.get("quantization_config") or {}).get("quant_method")
    return None if method is None else str(method)


def fit(folder: Path, weight_bytes: int, gpu_bytes: int) -> CheckResult:
    """Check that the weights of a checkpoint and a useful cache fit into the GPU. Loads nothing."""
    from transformers import AutoConfig

    from service.engines.model_config import head_dim

    config: Any = AutoConfig.from_pretrained(folder).get_text_config()
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    token_bytes = 2 * config.num_hidden_layers * kv_heads * head_dim(config) * _CACHE_BYTES
    tokens = cache_tokens(weight_bytes, token_bytes, gpu_bytes)
    found = f"{weight_bytes / GIB:.1f} GiB of weights, cache for about {tokens:,} tokens (computed)"
    if tokens < 1024:
        hint = "serve a smaller or quantised checkpoint, or several GPUs: --vllm-arg tensor_parallel_size=2"
        return CheckResult("gpu memory", "fail", found, hint)
    if tokens < min(getattr(config, "max_position_embeddings", MIN_TOKENS), MIN_TOKENS):
        hint = f"set max_context to {tokens // 1024 * 1024} or less"
        return CheckResult("gpu memory", "warn", found, hint)
    return CheckResult("gpu memory", "ok", found)
