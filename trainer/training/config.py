"""What a training run is: one recipe in TOML, each field documented here. The defaults are the paper's.

The section ``[ray]`` of a recipe; light to import.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from service.cli.output import explain
from service.deferral.policy import DeferralPolicy
from trainer.quickstart.config import WarmStartConfig
from trainer.training.recipe_files import find_recipe
from trainer.training.runtime_config import MachineConfig


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


Method = Literal["ih-grpo", "grpo-delayed", "grpo-immediate"]


class ConfigError(ValueError):
    """The recipe can't be used; the message names the field and the hint."""


class TrainConfig(MachineConfig):
    """A training run. Defaults: arXiv 2605.18500, section 4."""

    method: Method = "ih-grpo"
    """``ih-grpo``: deferred execution and the hierarchy term. ``grpo-delayed``: deferred execution, plain
    GRPO. ``grpo-immediate``: every block runs as soon as it is closed, plain GRPO."""
    model: str
    """Directory of a checkpoint in the Hugging Face format, or a hub id."""
    data: tuple[str, ...] = Field(min_length=1)
    """Training problems: parquet or jsonl files, hub ids, or ``quickstart:2000`` for synthetic ones."""
    run_dir: Path
    """Where checkpoints, rollouts and curves go. A run that is started again goes on from its last
    checkpoint."""
    seed: int = Field(default=0, ge=0)
    """Decides the order of the problems and every sampled token."""
    steps: int = Field(default=200, ge=1)
    """Optimiser steps."""

    # Rollout
    prompts_per_step: int = Field(default=16, ge=1)
    """Groups that are trained on a rollout, after filtering."""
    group_size: int = Field(default=8, ge=2)
    """Samples a prompt."""
    oversample: float = Field(default=3.0, ge=1)
    """Prompts drawn a rollout, as a multiple of ``prompts_per_step``. Sampling stops once enough groups are
    kept."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling; the loss divides the logits by it too."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Below 1 the sampled distribution is not quite the one that the loss takes the ratio to."""
    max_prompt_tokens: int = Field(default=2048, ge=1)
    """Problems with longer prompts are left out, and counted."""
    policy: dict[str, Any] = Field(default_factory=dict)
    """Fields of ``deferral.json`` to change, such as ``max_turns``; the others are the checkpoint's, save the
    ``mode``, which is the method's."""

    # Who samples, and who gets each step's weights
    generation: Literal["embedded", "vllm"] = "embedded"
    """``embedded``: an engine of ours in each training process. ``vllm``: the servers of
    ``generation_urls``, or vLLM in each training process where there are none."""
    generation_urls: tuple[str, ...] = ()
    """vLLM servers, as ``http://gpu-1:8000``, started with ``VLLM_SERVER_DEV_MODE=1``."""
    generation_key_file: Path | None = None
    """File with the key that they ask for."""
    weight_transfer: Literal["files", "gloo", "nccl", "ipc"] = "files"
    """How each rollout's weights get to vLLM. ``files``: servers read them from ``weights_dir``. ``gloo``:
    over TCP, from memory to memory. ``nccl``: vLLM's own, from GPU to GPU. ``ipc``: vLLM's own, between
    processes on one GPU. But for ``files``, start servers with ``--weight-transfer-config '{"backend":
    "gloo"}'``. vLLM in the training process takes ``gloo`` or ``ipc``."""
    weight_transfer_port: int = Field(default=0, ge=0, le=65535)
    """That vLLM's workers connect to on the trainer's host; 0: any that is free."""
    vllm_args: dict[str, Any] = Field(default_factory=dict)
    """For vLLM in the training process: fields of its ``AsyncEngineArgs``, as
    ``gpu_memory_utilization``."""
    follower_urls: tuple[str, ...] = ()
    """Servers of our own that serve what is being trained: each rollout's weights go there by
    ``/admin/reload``, from ``weights_dir``, which is below their ``reload_root``."""
    follower_key_file: Path | None = None
    """File with the key that they ask for."""
    weights_dir: Path | None = None
    """Directory that the trainer and those servers see under the same path."""

    ray: RayConfig | None = None
    """Play, and judge if you like, on the hosts of a Ray cluster: fields in ``trainer/cluster/settings.py``.
    Default: in the training processes."""

    # Which groups are trained on
    min_group_std: float = Field(default=1e-3, ge=0)
    """A group whose rewards differ less than this teaches nothing and is dropped."""
    min_valid_samples: int = Field(default=4, ge=2)
    """A group with fewer samples that are neither void nor cut is dropped."""

    # Loss
    hierarchy_weight: float = Field(default=0.001, ge=0)
    """Lambda. The ``grpo-`` methods take 0 whatever stands here."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """The ratio is clipped below at 1 - ``clip_low``."""
    clip_high: float = Field(default=0.28, gt=0)
    """The ratio is clipped above at 1 + ``clip_high``."""
    dual_clip: float = Field(default=3.0, gt=1)
    """Bound on a token's loss where the advantage is negative, as a multiple of it."""

    # Optimiser
    learning_rate: float = Field(default=1e-6, gt=0)
    """Of AdamW."""
    lr_schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    """How the learning rate goes on over the steps."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up; not with ``constant``."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    mini_batch_samples: int | None = Field(default=None, ge=1)
    """Samples an optimiser step, over all processes. Default: all of a rollout, which keeps training
    on-policy."""
    micro_batch_samples: int = Field(default=4, ge=1)
    """Samples a forward pass on one process. Changes memory and speed, not the result."""
    gradient_checkpointing: bool = False
    """Store fewer activations and compute them again: less memory, about a third more time."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the forward pass. The weights and the optimiser's state stay in float32."""

    # What is kept
    save_every: int = Field(default=10, ge=1)
    """Steps between checkpoints; the last step always leaves one."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Older ones are removed."""
    save_rollouts: bool = True
    """Write every step's episodes to ``rollouts/`` as parquet."""
    tensorboard: bool = True
    """Write curves to ``tensorboard/``."""
    wandb_project: str | None = None
    """Weights & Biases project to log to; needs the extra ``wandb``. With ``WANDB_MODE=offline`` in the
    environment everything stays in ``run_dir``, for ``wandb sync``."""

    @field_validator("data", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("policy")
    @classmethod
    def _policy_fields(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "mode" in value:
            raise ValueError("mode is decided by method: set that")
        try:
            DeferralPolicy.model_validate(value)
        except ValidationError as error:
            raise ValueError("; ".join(explain(error, DeferralPolicy))) from None
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_valid_samples > self.group_size:
            raise ValueError(
                f"min_valid_samples is {self.min_valid_samples}, more than group_size {self.group_size}: "
                f"every group would be dropped"
            )
        if self.rollout_samples % self.mini_batch:
            raise ValueError(
                f"mini_batch_samples is {self.mini_batch}: it must divide the {self.rollout_samples} samples "
                f"of a rollout (prompts_per_step x group_size)"
            )
        if self.mini_batch % self.micro_batch_samples:
            raise ValueError(
                f"micro_batch_samples is {self.micro_batch_samples}: it must divide the {self.mini_batch} "
                f"samples of an optimiser step"
            )
        for name, value in (("save_every", self.save_every), ("steps", self.steps)):
            if value % self.updates_per_rollout:
                raise ValueError(
                    f"{name} is {value}: it must be a multiple of the {self.updates_per_rollout} optimiser "
                    f"steps that share a rollout, or a resumed run would not be the same"
                )
        if self.generation_urls and self.generation != "vllm":
            raise ValueError("generation_urls names vLLM servers: set generation to 'vllm', or leave it out")
        by_file = bool(self.generation_urls) and self.weight_transfer == "files"
        if (by_file or self.follower_urls) and self.weights_dir is None:
            raise ValueError("weights_dir is missing: servers elsewhere read each step's weights from there")
        if self.has_own_vllm and self.weight_transfer not in ("gloo", "ipc"):
            raise ValueError(
                "weight_transfer must be 'gloo' or 'ipc' for vLLM in the training process, which generation "
                "'vllm' means without generation_urls"
            )
        if self.warmup_steps and self.lr_schedule == "constant":
            raise ValueError("warmup_steps needs lr_schedule 'constant_with_warmup', 'linear' or 'cosine'")
        return self

    @property
    def rollout_samples(self) -> int:
        """Samples that a rollout trains on, over all processes."""
        return self.prompts_per_step * self.group_size

    @property
    def has_own_vllm(self) -> bool:
        """Whether episodes are sampled by vLLM in the training process, or in a Ray actor."""
        return self.generation == "vllm" and not self.generation_urls

    @property
    def mini_batch(self) -> int:
        """Samples an optimiser step, over all processes."""
        return self.mini_batch_samples or self.rollout_samples

    @property
    def updates_per_rollout(self) -> int:
        return self.rollout_samples // self.mini_batch

    @property
    def draws_per_rollout(self) -> int:
        """Prompts drawn a rollout, over all processes."""
        return round(self.prompts_per_step * self.oversample)

    @property
    def effective_hierarchy_weight(self) -> float:
        return self.hierarchy_weight if self.method == "ih-grpo" else 0.0

    def resolve_policy(self, model_dir: Path) -> DeferralPolicy:
        """The policy of the checkpoint in ``model_dir`` with this recipe's changes and its method's mode."""
        mode = "immediate" if self.method == "grpo-immediate" else "deferred"
        own = DeferralPolicy.load(model_dir).model_dump()
        return DeferralPolicy.model_validate({**own, **self.policy, "mode": mode})


def load_config(recipe: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a recipe.

    Args:
        recipe: a TOML file of ``TrainConfig``'s fields; see ``find_recipe``.
        overrides: ``key=value`` each, the value in TOML or a bare word; ``policy.max_turns=3`` reaches
            inside.

    Raises:
        ConfigError: the file, a field or a value can't be used.
    """
    values = recipe_values(recipe, overrides)
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        lines = explain(error, TrainConfig, RayConfig)
        if values.keys() & (WarmStartConfig.model_fields.keys() - TrainConfig.model_fields.keys()):
            lines.append("it looks like a recipe of: ih-grpo train warm-start")
        raise ConfigError(f"recipe {recipe}:\n" + "\n".join(f"  {line}" for line in lines)) from None


def recipe_values(recipe: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a TOML file with ``overrides``, not validated; see `load_config`.

    Raises:
        ConfigError: the file can't be read, or an override is not of the form ``key=value``.
    """
    try:
        values = tomllib.loads(find_recipe(recipe).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"recipe {recipe} can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {recipe} is not TOML: {error}") from None
    for override in overrides:
        _set(values, override)
    return values


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"--set {override!r} is not of the form key=value")
    for name in path[:-1]:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override!r}: {name} has no fields")
    values[path[-1]] = _toml_value(text.strip())


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word: a path, a name
