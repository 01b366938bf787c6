"""Settings of the engines. Importing this module loads no engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

LogprobsMode = Literal["raw_logprobs", "processed_logprobs"]
"""vLLM's ``--logprobs-mode``: logprobs of the unmodified model (vLLM's default), or of the distribution that
tokens are drawn from, after penalties and filters."""


class TransformersSettings(BaseModel):
    """Settings of the embedded engine: the model, its device and its batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """Directory of a checkpoint in the Hugging Face format, or a hub id."""
    model_name: str | None = None
    """Model name in the API. Default: the last part of ``model``."""
    device: str = "auto"
    """A torch device such as ``cpu`` or ``cuda:1``. ``auto`` uses the GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """``auto`` keeps the checkpoint's dtype on a GPU. On a CPU it is bfloat16 if the CPU supports it
    (AVX512-BF16 or AMX) and the model is large enough to gain from it, else float32."""
    adapters: dict[str, Path] = Field(default_factory=dict)
    """LoRA adapters by their model name in the API: directories with ``adapter_config.json``."""
    max_slots: int = Field(default=16, ge=1)
    """Maximum batch size in sequences, each in one row of the KV cache. Idle rows are the prefix cache, so
    use a few more than the expected number of concurrent episodes: this keeps episodes that wait for a tool
    call cached. Rows are as long as the longest sequence so far: memory grows to ``max_slots`` x that
    length."""
    prefill_chunk: int = Field(default=256, ge=1)
    """Prompt tokens processed per step, over all prompts. Smaller values reduce the stutter of running
    streams during a long prefill; larger values finish the prefill sooner."""
    max_context: int | None = Field(default=None, ge=2)
    """Upper bound on prompt + completion, in tokens. Default: the model's own."""
    threads: int | None = Field(default=None, ge=1)
    """Threads per CPU operator, for the whole process. Default: one for a small model, whose operators are
    too small to share and would stall on a busy machine; otherwise torch's default."""


class GGUFSettings(BaseModel):
    """Settings of llama.cpp in this process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """A GGUF file; the first one of a model in several files."""
    model_name: str | None = None
    """Model name in the API. Default: the file's name without ``.gguf``."""
    device: Literal["auto", "cpu"] = "auto"
    """``auto`` uses a GPU if there is one and llama-cpp-python was compiled for it."""
    max_slots: int = Field(default=16, ge=1, le=256)
    """Maximum batch size in sequences. Idle sequences are the prefix cache."""
    prefill_chunk: int = Field(default=256, ge=1)
    """Prompt tokens processed per step, over all prompts."""
    max_context: int | None = Field(default=None, ge=2)
    """Upper bound on prompt + completion, in tokens. Default: the model's own."""
    cache_tokens: int | None = Field(default=None, ge=2)
    """Size of the KV cache that all sequences share, in tokens; allocated at the start. Default: 65,536, or
    the context if that is more, within a quarter of the available memory."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of llama.cpp. Default: one per core."""


class VLLMSettings(BaseModel):
    """Settings of vLLM in this process. vLLM owns batching, memory and parallelism: configure them in
    ``args``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """Directory of a checkpoint in the Hugging Face format, or a hub id."""
    model_name: str | None = None
    """Model name in the API. Default: the last part of ``model``."""
    dtype: str = "auto"
    """``auto``: on a CPU the same choice as the embedded engine (float32 or bfloat16), otherwise vLLM's
    own."""
    max_context: int | None = Field(default=None, ge=2)
    """Upper bound on prompt + completion, in tokens. Default: the model's own."""
    adapters: dict[str, Path] = Field(default_factory=dict)
    """LoRA adapters by their model name in the API: directories with ``adapter_config.json``."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Fields of vLLM's ``AsyncEngineArgs``, such as ``tensor_parallel_size``, ``data_parallel_size``,
    ``distributed_executor_backend`` ("ray" for several hosts) or ``gpu_memory_utilization``."""


class RemoteSettings(BaseModel):
    """Settings of the engine that samples on vLLM servers. All servers must serve the same model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    urls: tuple[str, ...] = Field(min_length=1)
    """Addresses of the servers, such as ``http://gpu-1:8000``. A trailing ``/v1`` is removed."""
    model: str
    """Checkpoint to read the tokenizer and configuration from: a directory or a hub id. Weights are not
    read."""
    model_name: str | None = None
    """Model name in the API. Default: the last part of ``model``."""
    max_context: int | None = Field(default=None, ge=2)
    """Upper bound on prompt + completion, in tokens. Default: the servers' own."""
    api_key: SecretStr | None = None
    """API key of the servers."""
    logprobs_mode: LogprobsMode = "raw_logprobs"
    """The servers' ``--logprobs-mode``. Their API does not report it."""
    attempts: int = Field(default=3, ge=1)
    """Servers to try for one call before its first token."""
    max_imbalance: int = Field(default=8, ge=0)
    """An episode moves away from the server that has its prefix cached if that server runs this many more
    calls than the least busy one."""
    health_interval_s: float = Field(default=5.0, gt=0)
    """Seconds between health checks."""
    connect_timeout_s: float = Field(default=5.0, gt=0)
    """Connection timeout in seconds."""
    token_timeout_s: float = Field(default=300.0, gt=0)
    """Seconds without data after which a server counts as failed. Includes the time in the server's queue."""

    @field_validator("urls")
    @classmethod
    def _clean(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        cleaned = tuple(url.rstrip("/").removesuffix("/v1").rstrip("/") for url in urls)
        for url in cleaned:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"{url!r} is not an address: it must start with http:// or https://")
        if len(set(cleaned)) < len(cleaned):
            raise ValueError("a server is listed twice")
        return cleaned


EngineSettings = TransformersSettings | GGUFSettings | VLLMSettings | RemoteSettings
