"""Settings of the engine and the sandbox, shared by training and evaluation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class RuntimeConfig(BaseModel):
    """Device, engine and sandbox settings. Only ``engine_dtype`` affects the samples."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    device: str = "auto"
    """Device of the model: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``. With several training processes each
    has its own GPU: set ``auto`` or ``cuda``."""
    engine_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the engine's weights and cache. ``auto``: the checkpoint's dtype on a GPU, float32 on a CPU,
    because the loss compares the engine's log-probs with the trainer's."""
    engine_slots: int = Field(default=64, ge=1)
    """Maximum number of sequences in one decoding batch."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads per operator. Default: chosen by torch."""
    max_concurrent_episodes: int = Field(default=64, ge=1)
    """Maximum number of concurrent episodes, including those waiting for their code."""

    sandbox: Literal["runner", "in-process", "process"] = "in-process"
    """``in-process``: this process starts the containers. ``runner``: a runner service starts them.
    ``process``: bubblewrap processes instead of containers, for machines without Docker. Its isolation is
    weaker, so use it only for code of models that you train yourself."""
    runner_address: tuple[str, ...] = ("127.0.0.1:8100",)
    """Addresses of runner services, as a list or separated by commas: ``host:port``, ``wss://host:port``
    (TLS) or ``unix:/path``. Each episode goes to the least loaded one that answers."""
    runner_token_file: Path | None = None
    """File with the secret that is shared with the runners."""
    runner_ca_file: Path | None = None
    """Certificate authorities of the runners, in PEM format. If set, all their TCP addresses use TLS."""
    runner_cert_file: Path | None = None
    """This client's certificate, if the runners require one."""
    runner_key_file: Path | None = None
    """Private key of this certificate. Default: in the same file."""
    sandbox_image: str = "ih-grpo-sandbox:latest"
    """Image of the containers, for ``in-process``."""
    max_containers: int | None = Field(default=None, ge=1)
    """Maximum number of concurrent containers or processes, if not started by a runner. An episode holds one
    from its first block to its end, and others wait. Default: one per concurrent episode, as far as their
    limits fit into half of the available memory that other runs on this machine have not reserved."""
    eager: bool = True
    """Start each block in the background as soon as it is closed: same result, shorter wait."""

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise ValueError(f"unknown device {value!r}: use auto, cpu, cuda or cuda:1")
        return value

    @field_validator("runner_address", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @model_validator(mode="after")
    def _runner_needs_secret(self) -> Self:
        if self.sandbox == "runner" and self.runner_token_file is None:
            raise ValueError(
                "runner_token_file is missing: sandbox 'runner' needs the file with the shared secret"
            )
        return self
