"""The recipe of a warm start from a released checkpoint, in TOML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from service.cli.output import explain
from service.deferral.policy import ASSISTANT_POLICY, DeferralPolicy
from trainer.quickstart.traces import TraceMix
from trainer.training.config import ConfigError, recipe_values
from trainer.training.recipe_tables import LoraSettings
from trainer.warm_start.solved import SolvedSettings

MARKER_LR = 2e-2
"""Learning rate of the marker's row, which may start from nothing: small entries, few steps with a marker."""


class WarmStartRecipe(BaseModel):
    """Supervised training of any checkpoint whose tokenizer has the execute marker."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: str
    """Directory of a checkpoint in the Hugging Face format, or a hub id."""
    run_dir: Path
    """Directory for the result, its checkpoints and its logs. Rerun the command to resume."""
    seed: int = Field(default=0, ge=0)
    """Draws problems, chat and the adapter's first values."""

    # What is trained
    weights: Literal["lora", "full"] = "lora"
    """``lora``: an adapter, by the table ``[lora]``. ``full``: all weights, in float32."""
    lora: LoraSettings = LoraSettings()
    """Settings of the adapter."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Learning rate of AdamW, after the warm-up and until half of the steps are done; then it falls to 0.
    Default: 3e-4 for an adapter, 1e-5 for all weights."""
    warmup_steps: int = Field(default=5, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of AdamW; the marker's row has none."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    steps: int = Field(default=100, ge=1)
    """Optimizer steps."""
    texts_per_step: int = Field(default=6, ge=1)
    """Texts of a step."""
    micro_batch_texts: int = Field(default=3, ge=1)
    """Texts of a forward pass. Changes memory and speed, not the result."""
    max_tokens: int = Field(default=1024, ge=16)
    """Longer texts are left out."""

    # What is learned
    chat_share: float = Field(default=0.5, ge=0, le=1)
    """Share of texts that are ordinary chat, answered by the checkpoint itself. The others are problems."""
    chat_requests: Path | None = None
    """Requests for the chat, one per line. Default: generated ones."""
    chat_samples: int = Field(default=60, ge=1)
    """Requests that the checkpoint answers before the training."""
    chat_max_tokens: int = Field(default=200, ge=1)
    """Tokens of an answer; longer ones are left out."""
    word_share: float = Field(default=0.8, ge=0, le=1)
    """Share of word problems and school mathematics among the problems; the others are short questions."""
    natural_share: float = Field(default=0.6, ge=0, le=1)
    """Share of everyday questions among the short questions; the others have larger numbers or more steps."""
    immediate_share: float = Field(default=0.0, ge=0, le=1)
    """Share of solutions that run every block immediately."""
    detour_share: float = Field(default=0.05, ge=0, le=1)
    """Share of solutions with an output that the code does not explain, such as a time limit."""
    solved: SolvedSettings = SolvedSettings()
    """Rejection sampling: solutions of any problem file, sampled before the training and kept if right."""
    policy: dict[str, Any] = Field(default_factory=dict)
    """Fields of ``deferral.json`` to change. Default: the policy of a general assistant, with ``mode``
    ``deferred`` and without ``thinking``."""

    # Measuring and saving
    held_out_texts: int = Field(default=16, ge=2)
    """Texts that are never trained on."""
    measure_every: int = Field(default=20, ge=1)
    """Steps between measurements on them."""
    save_every: int = Field(default=20, ge=1)
    """Steps between checkpoints; the last step always leaves one."""
    keep_checkpoints: int = Field(default=1, ge=1)
    """Older ones are removed."""

    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:1``."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of the forward pass and of frozen weights."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads. Default: torch's choice."""

    @field_validator("policy")
    @classmethod
    def _policy_fields(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            DeferralPolicy.model_validate({**_default_policy(), **value})
        except ValidationError as error:
            raise ValueError("; ".join(explain(error, DeferralPolicy))) from None
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.texts_per_step % self.micro_batch_texts:
            raise ValueError(
                f"micro_batch_texts is {self.micro_batch_texts}: it must divide texts_per_step "
                f"{self.texts_per_step}"
            )
        return self

    @property
    def deferral(self) -> DeferralPolicy:
        """The policy that the texts are written by, and that goes beside the weights."""
        return DeferralPolicy.model_validate({**_default_policy(), **self.policy})

    @property
    def effective_learning_rate(self) -> float:
        return self.learning_rate or (3e-4 if self.weights == "lora" else 1e-5)

    @property
    def mix(self) -> TraceMix:
        return TraceMix(
            immediate_share=self.immediate_share,
            detour_share=self.detour_share,
            natural_share=self.natural_share,
        )

    def learning_rate_factor(self, step: int) -> float:
        """Factor of all learning rates at ``step``, counted from 0: up, level until half way, down to 0."""
        up = min(1.0, (step + 1) / (self.warmup_steps + 1))
        return min(up, 1.0, 2 * (self.steps - step) / self.steps)


def _default_policy() -> dict[str, Any]:
    return {**ASSISTANT_POLICY.model_dump(), "mode": "deferred", "thinking": False}


def load_warm_start(path: Path, overrides: Sequence[str] = ()) -> WarmStartRecipe:
    """Read a recipe.

    Args:
        path: a TOML file of ``WarmStartRecipe``'s fields.
        overrides: ``key=value`` each, as for `trainer.training.config.load_config`.

    Raises:
        ConfigError: the file, a field or a value can't be used.
    """
    try:
        return WarmStartRecipe.model_validate(recipe_values(path, overrides))
    except ValidationError as error:
        lines = "".join(
            f"\n  {line}" for line in explain(error, WarmStartRecipe, LoraSettings, SolvedSettings)
        )
        raise ConfigError(f"recipe {path}:{lines}") from None
