"""The section ``[ray]`` of a recipe; light to import."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator


class RayConfig(BaseModel):
    """Which Ray cluster plays and judges, and how much of it. Nothing here changes what is sampled.

    Counts are for each training process. An actor is a process with an engine and a sandbox of its own, by
    the recipe's ``engine_slots``, ``max_containers`` and so on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    address: str = "local"
    """``local``: a cluster of this machine alone, for the length of the run. ``auto``: the one that this
    machine is part of. Else its address, as ``10.0.0.1:6379``."""
    rollout_actors: int = Field(default=1, ge=1)
    """Actors that play episodes, spread over the hosts."""
    cpus: float = Field(default=1.0, ge=0)
    """CPUs that Ray sets aside for each of them."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs for each of them; with 0 its engine runs on the CPU."""
    resources: dict[str, float] = Field(default_factory=dict)
    """Resources of your own that each of them takes, to bind them to hosts: ``{sandbox_host = 1}``."""
    reward_actors: int = Field(default=0, ge=0)
    """Actors that judge answers. With 0 they are judged beside the trainer."""
    reward_workers: int = Field(default=2, ge=1)
    """Answers that a reward actor judges at once: processes, and CPUs set aside."""
    reward_resources: dict[str, float] = Field(default_factory=dict)
    """As ``resources``, for reward actors."""
    attempts: int = Field(default=3, ge=1)
    """Actors that an episode is tried on before it is given up."""
    episode_timeout_s: float = Field(default=1800.0, gt=0)
    """An actor that takes longer over one episode counts as hung and is started anew."""
    start_timeout_s: float = Field(default=900.0, gt=0)
    """How long placing the actors and loading the model may take."""

    @field_validator("address")
    @classmethod
    def _no_client(cls, value: str) -> str:
        if value.startswith("ray://"):
            raise ValueError(
                "ray:// is not supported: run the trainer on a host of the cluster, with address 'auto'"
            )
        return value
