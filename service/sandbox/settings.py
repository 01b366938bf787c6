"""Sizes and limits that every backend has."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class PoolSettings(BaseModel):
    """A pool of single-use sandboxes. Fixed when the runner starts; no request can raise a limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool_size: int = Field(default=4, ge=0, le=512)
    """Idle sandboxes kept warm, each about 100 MB of memory. Demand raises the number: see ``pool``."""
    max_containers: int = Field(default=32, ge=1, le=4096)
    """Sandboxes at any time, idle, leased and dying together."""
    start_concurrency: int = Field(default=2, ge=1, le=32)
    """Sandboxes started at the same time; a start takes about a second of one core."""
    queue_timeout_s: float = Field(default=30.0, gt=0)
    """How long a session waits for a container before ``QueueTimeoutError``."""
    start_timeout_s: float = Field(default=60.0, gt=0)
    """How long a container may take from its creation to its first frame."""

    run_limit_ceiling_s: float = Field(default=30.0, gt=0, le=600)
    """Highest run limit of a session; a higher wish is clipped to it."""
    grace_s: float = Field(default=1.0, gt=0, le=60)
    """What a supervisor gets beyond the run limit to clean up and answer; then its sandbox is killed."""
    max_lifetime_s: float = Field(default=3600.0, gt=0)
    """A container ends itself after this long, idle or leased."""

    memory_mb: int = Field(default=512, ge=192)
    """Memory of a container, tmpfs files included. There is no swap."""
    pids: int = Field(default=64, ge=16, le=4096)
    """Processes and threads of a container."""
    disk_mb: int = Field(default=64, ge=1)
    """Size of each of /tmp and the work folder, both in memory."""
    open_files: int = Field(default=256, ge=64, le=16384)
    """Open descriptors of a process."""

    output_bytes: int = Field(default=64 * 1024, ge=256, le=80 * 1024)
    """Kept of stdout and of stderr each: half from the head, half from the tail."""
    output_limit_mb: int = Field(default=64, ge=1)
    """A flush that writes more than this to one stream is killed: status ``output_limit``."""

    @model_validator(mode="after")
    def _pool_fits(self) -> Self:
        if self.pool_size > self.max_containers:
            raise ValueError(
                f"pool_size ({self.pool_size}) is above max_containers ({self.max_containers}): "
                "raise max_containers or lower pool_size"
            )
        return self
