"""Settings of what plays episodes, the engine and the sandbox, for training and evaluation alike."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class MachineConfig(BaseModel):
    """Where episodes are played, and how many at once. Nothing here changes what is sampled."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    device: str = "auto"
    """Where the model runs: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``."""
    engine_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the engine's weights and cache. ``auto`` is the checkpoint's on a GPU and float32 on a CPU, where a
    server may take bfloat16: the loss compares the engine's logprobs with the trainer's."""
    engine_slots: int = Field(default=64, ge=1)
    """Sequences that the engine decodes in one batch."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of one operator. Default: torch's choice."""
    max_concurrent_episodes: int = Field(default=64, ge=1)
    """Episodes in flight at once, those that wait for their code included."""

    sandbox: Literal["runner", "in-process", "process"] = "in-process"
    """``in-process``: this process starts the containers. ``runner``: a runner service does. ``process``: no
    containers but processes under bubblewrap, for machines without Docker; weaker walls, so only for code of
    models that you train yourself."""
    runner_address: str = "127.0.0.1:8100"
    """Address of the runner service: ``host:port`` or ``unix:/path``."""
    runner_token_file: Path | None = None
    """File with the secret shared with the runner."""
    sandbox_image: str = "ih-grpo-sandbox:latest"
    """Image of the containers, for ``in-process``."""
    max_containers: int = Field(default=16, ge=1)
    """Containers or processes at once, unless a runner has them. An episode holds one from its first block
    to its end."""
    eager: bool = True
    """Start a block in the background as soon as it is closed: the same result, after a shorter wait."""

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise ValueError(f"{value!r} is not known: give auto, cpu, cuda or cuda:1")
        return value

    @model_validator(mode="after")
    def _runner_needs_its_secret(self) -> Self:
        if self.sandbox == "runner" and self.runner_token_file is None:
            raise ValueError(
                "runner_token_file is missing: sandbox 'runner' needs the secret shared with the runner"
            )
        return self
