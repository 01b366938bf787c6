"""Settings of the vLLM engine; light to import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class VLLMSettings(BaseModel):
    """What vLLM serves, and how. It owns batching, memory and parallelism; ``args`` reach all of that."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """Directory of a checkpoint in the Hugging Face format, or a hub id."""
    model_name: str | None = None
    """Name that clients see. Default: the last part of ``model``."""
    dtype: str = "auto"
    """``auto``: on a CPU as the embedded engine, float32 or bfloat16; else vLLM's own choice."""
    max_context: int | None = Field(default=None, ge=2)
    """Upper bound on prompt + completion, in tokens. Default: the model's own."""
    adapters: dict[str, Path] = Field(default_factory=dict)
    """LoRA adapters by the name that clients ask for: directories with ``adapter_config.json``."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Fields of vLLM's ``AsyncEngineArgs``, as ``tensor_parallel_size``, ``data_parallel_size``,
    ``distributed_executor_backend`` ("ray" for several hosts) or ``gpu_memory_utilization``."""
