"""Recipes of warm starts: the fields of the TOML file, their defaults and checks."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.cli.output import explain
from service.deferral.policy import DeferralPolicy
from trainer.quickstart.traces import TraceMix
from trainer.training.config import find_recipe


class RecipeError(ValueError):
    """The recipe is invalid; the message names the field and gives a hint."""


class WarmStartConfig(BaseModel):
    """Training of a small model on generated episodes. The defaults are those of the shipped checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    seed: int = Field(default=0, ge=0)
    """Determines the initial weights and all traces."""
    model: Path | None = None
    """Checkpoint to start from, with its tokenizer and sizes. Default: random weights with the sizes
    below."""
    steps: int = Field(default=1400, ge=1)
    """Optimiser steps, including the drill. Fewer steps give a weaker model: see ``learning_steps``."""
    learning_steps: int | None = Field(default=None, ge=1)
    """Steps of the learning-rate schedule. Default: ``steps``. For a weak model, use more than ``steps``."""
    drill_steps: int = Field(default=150, ge=0)
    """First steps, on random tokens that are repeated twice: the model learns to copy."""
    batches_per_step: int = Field(default=4, ge=1)
    """Batches per step, each on its own thread."""
    batch_tokens: int = Field(default=1440, ge=16, multiple_of=16)
    """Tokens per batch, including padding. A number with many divisors needs less padding."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Maximum learning rate of Muon and AdamW: reached after the warm-up and kept for half of the steps, then
    lowered linearly to 0."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Weight decay of matrices; embeddings and norms have none."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""

    immediate_share: float = Field(default=0.0, ge=0, le=1)
    """Share of traces that run every block immediately. Above 0 the model learns both ways, so that
    reinforcement learning has a choice to learn."""
    detour_share: float = Field(default=0.05, ge=0, le=1)
    """Share of traces with an output unrelated to the code, such as a sandbox failure or no output."""
    slip_share: float = Field(default=0.0, ge=0, le=1)
    """Share of traces with a wrong answer: a miscopied operand, an invented value or a misread output. The
    model learns to make these mistakes at the same rate, and reinforcement learning can remove them."""

    natural_share: float = Field(default=0.55, ge=0, le=1)
    """Share of everyday questions in free wordings. The rest are the families with large numbers."""
    ordinary_share: float = Field(default=0.2, ge=0, le=1)
    """Share of texts that are not arithmetic. Their reply states what the model can do."""
    earlier_share: float = Field(default=0.15, ge=0, le=1)
    """Share of traces with earlier turns in the conversation."""
    multi_hop_share: float = Field(default=0.0, ge=0, le=1)
    """Share of questions that need searches, see `trainer.environments.multi_hop`."""

    hidden_size: int = Field(default=192, ge=8)
    """Width of the model."""
    layers: int = Field(default=4, ge=1)
    """Number of layers."""
    heads: int = Field(default=6, ge=1)
    """Query heads; there are 2 key and value heads."""
    head_dim: int = Field(default=32, ge=2)
    """Width of an attention head."""
    intermediate_size: int = Field(default=512, ge=8)
    """Width of the MLP."""
    words: int = Field(default=1000, ge=1)
    """Merges of the tokenizer, in addition to the 1,110 number pieces."""

    threads: int | None = Field(default=None, ge=1)
    """CPU threads, at most ``batches_per_step``. Default: the number of cores."""
    measure_every: int = Field(default=100, ge=1)
    """Steps between measurements of held-out copy accuracy."""
    save_every: int = Field(default=250, ge=1)
    """Steps between saved states, from which an interrupted run resumes."""
    policy: DeferralPolicy = DeferralPolicy(
        prompt="brief-v1", max_turn_tokens=512, max_episode_tokens=2048, run_limit_s=3.0
    )
    """The policy saved as ``deferral.json``, which the traces follow."""

    @property
    def trace_mix(self) -> TraceMix:
        """The shares of the kinds of traces."""
        return TraceMix(
            immediate_share=self.immediate_share,
            detour_share=self.detour_share,
            slip_share=self.slip_share,
            natural_share=self.natural_share,
            ordinary_share=self.ordinary_share,
            earlier_share=self.earlier_share,
            multi_hop_share=self.multi_hop_share,
        )

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of step ``step``, counted from 0: warm-up, constant, then linear decay."""
        planned = self.learning_steps or self.steps
        up = min(1.0, (step + 1) / (self.warmup_steps + 1))
        down = min(1.0, 2 * (planned - step) / planned)
        return self.learning_rate * min(up, max(down, 0.0))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a recipe.

        Raises:
            RecipeError: the file is unreadable, or a field is invalid.
        """
        try:
            return cls.model_validate(tomllib.loads(find_recipe(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise RecipeError(f"cannot read recipe {path}: {error.strerror}") from None
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"recipe {path} is not TOML: {error}") from None
        except ValidationError as error:
            lines = "".join(f"\n  {line}" for line in explain(error, cls))
            raise RecipeError(f"recipe {path}:{lines}") from None
