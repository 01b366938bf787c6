"""Settings of the embedded engine; light to import, so that the command line can read them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class EngineSettings(BaseModel):
    """What the embedded engine loads, where, and how much it may run at once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """Directory of a checkpoint in the Hugging Face format, or a hub id."""
    model_name: str | None = None
    """Name that clients see. Default: the last part of ``model``."""
    device: str = "auto"
    """``auto`` takes the GPU where there is one; else a torch device such as ``cpu`` or ``cuda:1``."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """``auto`` keeps the checkpoint's dtype on a GPU. On a CPU it is bfloat16 if the CPU has instructions for
    it (AVX512-BF16 or AMX) and the model is large enough to gain from it, else float32."""
    adapters: dict[str, Path] = Field(default_factory=dict)
    """LoRA adapters by the name that clients ask for: directories with ``adapter_config.json``."""
    max_slots: int = Field(default=16, ge=1)
    """Sequences that run at once, each in a row of the KV cache. Idle rows are the prefix cache, so a few
    more than the expected number of episodes keeps those that wait for a tool call cached. Rows are as
    long as the longest sequence so far: memory grows to ``max_slots`` x that length."""
    prefill_chunk: int = Field(default=256, ge=1)
    """Prompt tokens read per step, over all prompts. Smaller: running streams stutter less while a long
    prompt is read. Larger: the prompt is read sooner."""
    max_context: int | None = Field(default=None, ge=2)
    """Upper bound on prompt + completion, in tokens. Default: the model's own."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of one CPU operator, for the whole process. Default: one for a small model, whose operators are
    not worth sharing and would stall on a busy machine; else torch's choice."""
