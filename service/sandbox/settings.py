"""Pool sizes and resource limits, shared by all kinds of sandbox."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.sandbox.base import SessionLimits


class PoolSettings(BaseModel):
    """Settings of a pool of sandboxes. Fixed at start; no request can raise a limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool_size: int = Field(default=4, ge=0, le=512)
    """Idle sandboxes to keep warm, about 100 MB of memory each. Demand raises the number: see ``pool``."""
    max_containers: int = Field(default=32, ge=1, le=4096)
    """Sandboxes that exist at the same time: idle, leased and being removed."""
    start_concurrency: int = Field(default=2, ge=1, le=32)
    """Sandboxes started at the same time. A start takes about one second of one core."""
    queue_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds that a session waits for a container before it fails with ``QueueTimeoutError``."""
    start_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds from the creation of a container until it must be ready."""

    run_limit_ceiling_s: float = Field(default=30.0, gt=0, le=600)
    """Ceiling of a session's run limit, in seconds; higher values are clipped."""
    grace_s: float = Field(default=1.0, gt=0, le=60)
    """Seconds after the run limit within which a supervisor must answer. Then its sandbox is killed."""
    max_lifetime_s: float = Field(default=3600.0, gt=0)
    """Seconds after which a container ends itself. An idle one is replaced after half of them."""

    reuse: bool = False
    """Reset a sandbox after its session and give it to the next one, instead of destroying it. Only for
    callers whose sessions all belong together, such as the episodes of a training run."""

    memory_mb: int = Field(default=512, ge=192)
    """Memory of a container, including its tmpfs files. There is no swap."""
    pids: int = Field(default=64, ge=16, le=4096)
    """Processes and threads of a container."""
    disk_mb: int = Field(default=64, ge=1)
    """Size of each of /tmp and the work folder, both in memory."""
    inputs_mb: int = Field(default=1024, ge=1)
    """Size of the inputs of a sandbox, which are in memory. They raise its memory limit by their size."""
    memory_ceiling_mb: int = Field(default=4096, ge=192)
    """Ceiling of the memory that a session may request, without its inputs; higher values are clipped."""
    open_files: int = Field(default=256, ge=64, le=16384)
    """Open file descriptors of a process."""

    output_bytes: int = Field(default=64 * 1024, ge=256, le=80 * 1024)
    """Bytes kept of stdout and of stderr each: half from the start, half from the end."""
    output_limit_mb: int = Field(default=64, ge=1)
    """Megabytes that a flush may write to one stream. Beyond, it is killed with status ``output_limit``."""

    @model_validator(mode="after")
    def _pool_fits(self) -> Self:
        if self.pool_size > self.max_containers:
            raise ValueError(
                f"pool_size ({self.pool_size}) is above max_containers ({self.max_containers}): "
                "raise max_containers or lower pool_size"
            )
        return self

    def clip(self, limits: SessionLimits) -> SessionLimits:
        """Return ``limits`` within the ceilings."""
        memory_mb = limits.memory_mb
        if memory_mb is not None:
            memory_mb = min(max(memory_mb, self.memory_mb), max(self.memory_ceiling_mb, self.memory_mb))
        clipped = min(limits.run_limit_s, self.run_limit_ceiling_s)
        return replace(limits, run_limit_s=clipped, memory_mb=memory_mb)
