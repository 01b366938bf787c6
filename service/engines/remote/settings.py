"""Settings of the remote engine; light to import."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from service.engines.vllm.request import LogprobsMode


class RemoteSettings(BaseModel):
    """Which vLLM servers to sample on. All serve the same model; each gets what the others don't."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    urls: tuple[str, ...] = Field(min_length=1)
    """Addresses of the servers, as ``http://gpu-1:8000``; a path of ``/v1`` at the end is taken off."""
    model: str
    """Checkpoint whose tokenizer and configuration are read here: a directory, or a hub id. No weights."""
    model_name: str | None = None
    """Name that clients see. Default: the last part of ``model``."""
    max_context: int | None = Field(default=None, ge=2)
    """Upper bound on prompt + completion, in tokens. Default: the servers' own."""
    api_key: SecretStr | None = None
    """Key that the servers ask for."""
    logprobs_mode: LogprobsMode = "raw_logprobs"
    """The servers' ``--logprobs-mode``; they don't tell it."""
    attempts: int = Field(default=3, ge=1)
    """Servers tried for one call, as long as no token has come."""
    max_imbalance: int = Field(default=8, ge=0)
    """An episode leaves the server that has its prefix cached when that one runs so many calls more than
    the least busy one."""
    health_interval_s: float = Field(default=5.0, gt=0)
    """Seconds between two looks at a server."""
    connect_timeout_s: float = Field(default=5.0, gt=0)
    """Longest wait for a connection."""
    token_timeout_s: float = Field(default=300.0, gt=0)
    """Longest silence of a server before it counts as failed; its queue is part of it."""

    @field_validator("urls")
    @classmethod
    def _clean(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        cleaned = tuple(url.rstrip("/").removesuffix("/v1").rstrip("/") for url in urls)
        for url in cleaned:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"{url!r} is no address: it starts with http:// or https://")
        if len(set(cleaned)) < len(cleaned):
            raise ValueError("a server is named twice")
        return cleaned
