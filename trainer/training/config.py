"""Recipes of training runs: the fields of the TOML file, their defaults (the paper's) and checks.

Cheap to import: no torch.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from service.cli.output import explain
from service.deferral.policy import DeferralPolicy
from trainer.data.decontamination import MIN_WORDS, NGRAM
from trainer.environments.settings import ToolSettings
from trainer.rewards.registry import DEFAULT_REWARDS, RewardSpec, declared_range
from trainer.training.recipe_tables import (
    Aggregation,
    Execution,
    LoraSettings,
    Method,
    OffPolicySettings,
    ValidationSettings,
    with_preset,
)
from trainer.training.runtime_config import RuntimeConfig


class RayConfig(BaseModel):
    """The section ``[ray]`` of a recipe: rollouts and rewards on a Ray cluster. Does not affect the samples.

    Counts are per training process. An actor is a process with its own engine and sandbox, configured by the
    recipe's ``engine_slots``, ``max_containers`` and so on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    address: str = "local"
    """``local``: start a cluster on this machine for the duration of the run. ``auto``: use the cluster that
    this machine belongs to. Otherwise an address such as ``10.0.0.1:6379``."""
    rollout_actors: int = Field(default=1, ge=1)
    """Actors that run episodes, spread over the hosts."""
    cpus: float = Field(default=1.0, ge=0)
    """CPUs that Ray reserves for each rollout actor."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs that Ray reserves for each rollout actor. With 0 its engine runs on the CPU."""
    resources: dict[str, float] = Field(default_factory=dict)
    """Custom Ray resources that each rollout actor needs, to bind actors to hosts: ``{sandbox_host = 1}``."""
    reward_actors: int = Field(default=0, ge=0)
    """Actors that score answers. With 0 answers are scored next to the trainer."""
    reward_workers: int = Field(default=2, ge=1)
    """Answers that a reward actor scores concurrently: its processes and reserved CPUs."""
    reward_resources: dict[str, float] = Field(default_factory=dict)
    """Custom Ray resources that each reward actor needs."""
    attempts: int = Field(default=3, ge=1)
    """Number of actors to try for an episode before it counts as lost."""
    episode_timeout_s: float = Field(default=1800.0, gt=0)
    """Seconds for one episode. An actor that takes longer counts as hung and is restarted."""
    start_timeout_s: float = Field(default=900.0, gt=0)
    """Seconds for placing the actors and loading the model."""

    @field_validator("address")
    @classmethod
    def _no_client(cls, value: str) -> str:
        if value.startswith("ray://"):
            raise ValueError(
                "ray:// is not supported: run the trainer on a host of the cluster, with address 'auto'"
            )
        return value


class ConfigError(ValueError):
    """The recipe is invalid; the message names the field and gives a hint."""


class TrainConfig(RuntimeConfig):
    """A training run. Defaults: arXiv 2605.18500, section 4."""

    method: Method = "ih-grpo"
    """``ih-grpo``, or a baseline: ``eh-grpo`` (the explicit two-level policy), ``grpo``, ``dapo``,
    ``dr-grpo`` and ``simpletir`` as published. A method sets the fields that the recipe leaves out; see
    ``PRESETS`` in ``trainer/training/recipe_tables.py``.
    ``grpo-delayed`` and ``grpo-immediate`` are everything of ``ih-grpo`` except the hierarchy term, with the
    ``execution`` that they name."""
    execution: Execution = "delayed"
    """``delayed``: code runs at the execute marker. ``immediate``: every block runs as soon as it is
    closed."""
    model: str
    """Checkpoint directory in the Hugging Face format, or a hub id. A PEFT adapter is merged into its base
    model, and all weights are trained; to continue the adapter itself, see `LoraSettings`."""
    base: str | None = None
    """Base model if ``model`` is an adapter: a directory or a hub id. Default: the one that the adapter
    names."""
    data: tuple[str, ...] = Field(min_length=1)
    """Training problems: parquet or JSON files, folders of them, hub ids such as ``org/name:config:split``,
    or ``quickstart:2000`` for 2,000 synthetic ones."""
    decontaminate: tuple[str, ...] = ()
    """Evaluation sets, as in ``data`` or by the name of a suite such as ``paper``. Training problems that
    share an n-gram of words with them are skipped, and listed in ``decontamination.json`` in ``run_dir``."""
    decontaminate_ngram: int = Field(default=NGRAM, ge=MIN_WORDS)
    """Words of an n-gram."""
    decontaminate_share: float = Field(default=0.0, ge=0, le=1)
    """Skip only problems that share at least this part of an evaluation problem's words. 0 skips all
    overlaps, including common phrases."""
    run_dir: Path
    """Output directory for checkpoints, rollouts and curves. Rerun to resume from the last checkpoint."""
    seed: int = Field(default=0, ge=0)
    """Determines the order of the problems and all sampled tokens."""
    steps: int = Field(default=200, ge=1)
    """Optimiser steps."""

    # Rollout
    prompts_per_step: int = Field(default=16, ge=1)
    """Groups to train on per rollout, after filtering."""
    group_size: int = Field(default=8, ge=2)
    """Samples per prompt."""
    oversample: float = Field(default=3.0, ge=1)
    """Prompts drawn per rollout, as a multiple of ``prompts_per_step``. Sampling stops when enough groups are
    kept."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature. The loss divides the logits by it as well."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling. Below 1 the sampling distribution differs slightly from the one in the loss."""
    max_staleness: int = Field(default=0, ge=0)
    """Rollouts that may run ahead of the one that is trained on, so that sampling and training overlap;
    no token is sampled with weights that are more than this many rollouts old. 0: sampling and training
    alternate, and the result does not depend on timing."""
    max_prompt_tokens: int = Field(default=2048, ge=1)
    """Problems with longer prompts are skipped and counted."""
    thinking: bool = False
    """Let the model think before it answers, if its chat template supports that."""
    tools: tuple[ToolSettings, ...] = ()
    """Tables ``[[tools]]``: Python functions and MCP servers that code can call; see `ToolSettings`. Prompts
    list them."""
    policy: dict[str, Any] = Field(default_factory=dict)
    """Fields of ``deferral.json`` to override, such as ``max_turns``. ``mode`` is set by ``execution`` and
    ``thinking`` by the field of that name; all others come from the checkpoint."""

    # Engine for sampling, and servers that receive the weights of each step
    generation: Literal["embedded", "vllm"] = "embedded"
    """``embedded``: the built-in engine in each training process. ``vllm``: the servers in
    ``generation_urls``, or vLLM in each training process if there are none."""
    generation_urls: tuple[str, ...] = ()
    """vLLM servers, such as ``http://gpu-1:8000``, started with ``VLLM_SERVER_DEV_MODE=1``."""
    generation_key_file: Path | None = None
    """File with the API key of these servers."""
    weight_transfer: Literal["files", "gloo", "nccl", "ipc"] = "files"
    """Transfer of each rollout's weights to vLLM. ``files``: servers read them from ``weights_dir``.
    ``gloo``: over TCP, from memory to memory. ``nccl``: vLLM's backend from GPU to GPU. ``ipc``: vLLM's
    backend between processes on one GPU. Except for ``files``, start the servers with
    ``--weight-transfer-config '{"backend": "gloo"}'`` (or the other name). vLLM in the training process
    supports ``gloo`` and ``ipc``."""
    weight_transfer_port: int = Field(default=0, ge=0, le=65535)
    """Port on the trainer's host that vLLM's workers connect to. 0 picks a free port."""
    vllm_args: dict[str, Any] = Field(default_factory=dict)
    """Fields of vLLM's ``AsyncEngineArgs`` for vLLM in the training process, such as
    ``gpu_memory_utilization``."""
    follower_urls: tuple[str, ...] = ()
    """`ih-grpo serve` servers that serve the model during training. For each rollout they load the new
    weights from ``weights_dir``, which must be inside their ``reload_root``, by ``/admin/reload``."""
    follower_key_file: Path | None = None
    """File with the API key of these servers."""
    weights_dir: Path | None = None
    """Directory that the trainer and the servers see under the same path."""

    ray: RayConfig | None = None
    """Run episodes, and optionally rewards, on a Ray cluster; see `RayConfig`. Default: run them in the
    training processes."""

    # Rewards
    rewards: tuple[RewardSpec, ...] = DEFAULT_REWARDS
    """Tables ``[[rewards]]`` with ``name``, ``weight`` and ``options``; see `RewardSpec`. The reward of an
    episode is the weighted sum. Default: ``math`` with weight 1."""

    # Filters
    min_group_std: float = Field(default=1e-3, ge=0)
    """Minimum standard deviation of a group's rewards. Other groups have no learning signal and are
    dropped."""
    min_valid_samples: int = Field(default=4, ge=2)
    """Minimum number of samples in a group that are neither void nor cut. Other groups are dropped."""

    mask_void: bool = True
    """Exclude samples with a void turn from the loss. They still count as failures in their group."""
    overlong_buffer: float = Field(default=0.0, ge=0, lt=1)
    """Last part of the token limit in which the reward falls in a line from 0 to -1 (DAPO's soft overlong
    punishment). Above 0, samples cut by the limit are trained on with the full penalty; else they are
    dropped."""

    # Loss
    hierarchy_weight: float = Field(default=0.001, ge=0)
    """Weight of the hierarchy term, the paper's lambda. All methods except ``ih-grpo`` use 0."""
    execute_head: Literal["linear", "marker"] = "linear"
    """For ``eh-grpo``: the head that decides whether to execute. ``linear``: a second head, a linear layer on
    the last hidden state, saved in ``execute_head.json``. It starts close to the marker's probability. Only
    the embedded engine samples and serves it. ``marker``: the marker's row of the LM head, which every engine
    supports."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """The ratio is clipped from below at 1 - ``clip_low``."""
    clip_high: float = Field(default=0.28, gt=0)
    """The ratio is clipped from above at 1 + ``clip_high``."""
    dual_clip: float = Field(default=3.0, ge=0)
    """Maximum loss of a token with a negative advantage, as a multiple of the advantage's absolute value;
    above 1, or 0 for none."""
    aggregation: Aggregation = "token-mean"
    """``token-mean``: all tokens of the step weigh the same. ``sample-mean``: all samples do (GRPO).
    ``constant``: the sum over tokens is divided by samples times the token limit (Dr. GRPO)."""
    scale_advantages: bool = True
    """Divide advantages by the standard deviation of the group's rewards."""
    kl_weight: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence from the policy at the start of the run, by the k3 estimator. Costs a
    forward pass; without an adapter also the memory of a frozen copy of the model."""
    off_policy: OffPolicySettings = OffPolicySettings()
    """Correction for differences between sampler and trainer; see `OffPolicySettings`."""

    # Optimiser
    lora: LoraSettings | None = None
    """Train an adapter instead of all weights; see `LoraSettings`. An empty table is enough."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Learning rate of AdamW."""
    lr_schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    """Schedule of the learning rate."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up. Not allowed with ``constant``."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    mini_batch_samples: int | None = Field(default=None, ge=1)
    """Samples per optimiser step, over all processes. Default: the whole rollout, so that training is
    on-policy."""
    micro_batch_samples: int = Field(default=4, ge=1)
    """Samples per forward pass on one process. Affects memory and speed, not the result."""
    gradient_checkpointing: bool = False
    """Recompute activations instead of storing them: less memory, about a third more time."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of the forward pass, and of frozen weights. Trained weights and optimiser state stay in
    float32."""

    # Validation and output
    validation: ValidationSettings | None = None
    """Validate on held-out problems during training; see `ValidationSettings`."""
    save_every: int = Field(default=10, ge=1)
    """Steps between checkpoints. The last step always writes one."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Number of newest checkpoints to keep. Of the older ones only the best is kept: the one with the highest
    accuracy in validation, or without ``[validation]`` with the highest mean reward of the ``save_every``
    steps before it. ``checkpoints/best`` is a link to it."""
    save_rollouts: bool = True
    """Write the episodes of every rollout to ``rollouts/`` as parquet."""
    tensorboard: bool = True
    """Write curves to ``tensorboard/``."""
    wandb_project: str | None = None
    """Weights & Biases project to log to. Needs the extra ``wandb``. With ``WANDB_MODE=offline`` in the
    environment the logs stay in ``run_dir``, ready for ``wandb sync``. A resumed run continues its curves."""
    push_to: str | None = None
    """Repository on the Hugging Face hub, such as ``org/name``. The best checkpoint is uploaded to it at the
    end of the run, with a model card. Needs a token with write access (``hf auth login`` or ``HF_TOKEN``)."""
    push_private: bool = True
    """Create the repository as a private one, if it does not exist."""

    @model_validator(mode="before")
    @classmethod
    def _method_defaults(cls, values: Any) -> Any:
        return with_preset(values) if isinstance(values, dict) else values

    @field_validator("dual_clip")
    @classmethod
    def _no_clip_inside(cls, value: float) -> float:
        if 0 < value <= 1:
            raise ValueError("must be above 1, or 0 for none")
        return value

    @field_validator("data", "decontaminate", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("push_to")
    @classmethod
    def _is_repository(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", value):
            raise ValueError(f"{value!r} is not a repository: use a name such as org/name")
        return value

    @field_validator("policy")
    @classmethod
    def _policy_fields(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "mode" in value:
            raise ValueError("mode is set by execution: change that field instead")
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
        if not any(spec.weight for spec in self.rewards):
            raise ValueError("rewards: at least one reward needs a weight other than 0")
        spread = self._largest_group_std()
        if spread is not None and self.min_group_std > spread:
            raise ValueError(
                f"min_group_std is {self.min_group_std:g}, but the rewards of a group have a standard "
                f"deviation of at most {spread:.3g}: every group would be dropped"
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
                    f"steps that share a rollout, or a resumed run would differ"
                )
        if self.max_staleness and (self.ray is not None or self.generation != "embedded"):
            raise ValueError(
                f"max_staleness is {self.max_staleness}: it needs generation 'embedded' and no [ray]: only "
                f"the embedded engine replaces its weights between two tokens of running episodes"
            )
        if self.max_staleness >= (rollouts := self.steps // self.updates_per_rollout) > 1:
            raise ValueError(
                f"max_staleness is {self.max_staleness}, but the run has only {rollouts} rollouts: all of "
                f"them would be sampled with the weights of the start"
            )
        if self.generation_urls and self.generation != "vllm":
            raise ValueError("generation_urls needs generation 'vllm': set it, or remove generation_urls")
        by_file = bool(self.generation_urls) and self.weight_transfer == "files"
        if (by_file or self.follower_urls) and self.weights_dir is None:
            raise ValueError("weights_dir is missing: the servers read the weights of each rollout from it")
        if self.has_own_vllm and self.weight_transfer not in ("gloo", "ipc"):
            raise ValueError(
                "weight_transfer must be 'gloo' or 'ipc' for vLLM in the training process (generation 'vllm' "
                "without generation_urls)"
            )
        if self.has_execute_head and (self.generation != "embedded" or self.follower_urls or self.ray):
            raise ValueError(
                "method 'eh-grpo' with a second head needs generation 'embedded', no follower_urls and no "
                "[ray]: set execute_head = 'marker' to use the marker's row of the LM head instead"
            )
        if self.warmup_steps and self.lr_schedule == "constant":
            raise ValueError("warmup_steps needs lr_schedule 'constant_with_warmup', 'linear' or 'cosine'")
        if self.validation is not None:
            self._check_validation(self.validation.every)
        return self

    def _check_validation(self, every: int) -> None:
        if every % self.updates_per_rollout:
            raise ValueError(
                f"validation.every is {every}: it must be a multiple of the {self.updates_per_rollout} "
                f"optimiser steps that share a rollout"
            )
        if every % self.save_every and self.save_every % every:
            raise ValueError(
                f"validation.every is {every} and save_every is {self.save_every}: one must be a multiple of "
                f"the other, or checkpoints would have no validation result"
            )

    def _largest_group_std(self) -> float | None:
        """Return the largest standard deviation that a group can have, or None if rewards have no range."""
        ends = declared_range(self.rewards)
        if ends is None:
            return None
        sizes = range(self.min_valid_samples, self.group_size + 1)
        return (ends[1] - ends[0]) * max(math.sqrt(n // 2 * (n - n // 2) / (n * (n - 1))) for n in sizes)

    @property
    def rollout_samples(self) -> int:
        """Samples to train on per rollout, over all processes."""
        return self.prompts_per_step * self.group_size

    @property
    def has_own_vllm(self) -> bool:
        """True if vLLM runs in the training process or in Ray actors, not on servers."""
        return self.generation == "vllm" and not self.generation_urls

    @property
    def mini_batch(self) -> int:
        """Samples per optimiser step, over all processes."""
        return self.mini_batch_samples or self.rollout_samples

    @property
    def updates_per_rollout(self) -> int:
        return self.rollout_samples // self.mini_batch

    @property
    def draws_per_rollout(self) -> int:
        """Prompts drawn per rollout, over all processes."""
        return round(self.prompts_per_step * self.oversample)

    def rate_factor(self, step: int) -> float:
        """Return the factor of the learning rate for an optimiser step, counted from 0.

        During the first ``warmup_steps`` steps it rises in equal parts to 1, which the step after them has.
        With ``linear`` and ``cosine`` it then falls and would be 0 at step ``steps``, one after the last.
        transformers' schedules have a first step with rate 0, and a resumed run keeps the schedule of the old
        number of steps there.
        """
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.lr_schedule in ("constant", "constant_with_warmup"):
            return 1.0
        done = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        if self.lr_schedule == "linear":
            return max(1.0 - done, 0.0)
        return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))

    @property
    def effective_hierarchy_weight(self) -> float:
        return self.hierarchy_weight if self.method == "ih-grpo" else 0.0

    @property
    def has_execute_head(self) -> bool:
        """Whether a second head is trained that decides when pending code runs."""
        return self.method == "eh-grpo" and self.execute_head == "linear"

    @property
    def uses_base_weights(self) -> bool:
        """Whether weights of ``model`` are used after the start: those below an adapter, or the reference."""
        return self.lora is not None or self.kl_weight > 0

    def resolve_policy(self, model_dir: Path) -> DeferralPolicy:
        """Return the policy of the checkpoint in ``model_dir`` with the recipe's overrides and mode.

        An adapter to continue has its own policy, which replaces that of its base model.
        """
        mode = "immediate" if self.execution == "immediate" else "deferred"
        adapter = self.lora.adapter if self.lora is not None else None
        default = DeferralPolicy.load(model_dir)
        checkpoint = (DeferralPolicy.load(adapter, default) if adapter else default).model_dump()
        fields = {**checkpoint, "thinking": self.thinking, **self.policy, "mode": mode}
        return DeferralPolicy.model_validate(fields)


def recipe_folder() -> Path:
    """Return the folder of recipes: ``trainer/recipes`` once installed, ``recipes`` in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def find_recipe(path: Path) -> Path:
    """Return ``path`` if it exists, else the packaged recipe of that name, such as ``recipes/NAME.toml``.

    If there is no such recipe either, return ``path`` unchanged: reading it reports the error.
    """
    if path.exists() or path.is_absolute():
        return path
    packaged = recipe_folder() / Path(*(path.parts[1:] if path.parts[:1] == ("recipes",) else path.parts))
    return packaged if packaged.is_file() else path


def load_config(recipe: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a recipe.

    Args:
        recipe: a TOML file with fields of `TrainConfig`; see `find_recipe`.
        overrides: ``key=value`` each, the value in TOML or a bare word. Dots select fields of a table:
            ``policy.max_turns=3``.

    Raises:
        ConfigError: the file is unreadable, or a field or value is invalid.
    """
    values = recipe_values(recipe, overrides)
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        lines = explain(
            error, TrainConfig, RayConfig, RewardSpec, LoraSettings, OffPolicySettings, ValidationSettings
        )
        if values.keys() & _WARM_START_FIELDS:
            lines.append("hint: this looks like a recipe for `ih-grpo train warm-start`")
        raise ConfigError(f"recipe {recipe}:\n" + "\n".join(f"  {line}" for line in lines)) from None


_WARM_START_FIELDS: Final = frozenset({"drill_steps", "batches_per_step", "batch_tokens"})
"""Fields that only the recipes of ``ih-grpo train warm-start`` have; used for a hint."""


def recipe_values(recipe: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a TOML file with ``overrides``, not validated; see `load_config`.

    Raises:
        ConfigError: the file is unreadable, or an override is not of the form ``key=value``.
    """
    try:
        values = tomllib.loads(find_recipe(recipe).read_text(encoding="utf-8"))
    except OSError as error:
        packaged = {path.stem: path.name for path in recipe_folder().glob("*.toml")}
        close = get_close_matches(recipe.stem, packaged, n=1)
        meant = f". Did you mean recipes/{packaged[close[0]]}?" if close else ""
        raise ConfigError(f"cannot read recipe {recipe}: {error.strerror}{meant}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {recipe} is not TOML: {error}") from None
    for override in overrides:
        _set(values, override)
    return values


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"--set {override!r} is not of the form KEY=VALUE")
    for name in path[:-1]:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override!r}: {name} is not a table")
    values[path[-1]] = _toml_value(text.strip())


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word: a path, a name
