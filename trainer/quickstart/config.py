"""The recipe of a warm start, in TOML."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.cli.output import explain
from service.deferral.policy import DeferralPolicy
from trainer.quickstart.traces import Style
from trainer.training.config import find_recipe


class RecipeError(ValueError):
    """The recipe can't be used; the message names the field and the hint."""


class WarmStartConfig(BaseModel):
    """A small model trained on written-down episodes. The defaults are the shipped one's."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    seed: int = Field(default=0, ge=0)
    """Decides the weights at the start and every trace."""
    model: Path | None = None
    """Checkpoint to go on from, with its tokenizer and sizes. Default: random weights of the sizes below."""
    steps: int = Field(default=1400, ge=1)
    """Optimiser steps, drill included. Fewer make a weaker model: see ``learning_steps``."""
    learning_steps: int | None = Field(default=None, ge=1)
    """Steps that the learning rate is planned for; default ``steps``. For a weak model stop before them."""
    drill_steps: int = Field(default=150, ge=0)
    """First steps, on random tokens written three times: the model learns to copy before it speaks."""
    batches_per_step: int = Field(default=4, ge=1)
    """Batches of a step, each on a thread of its own."""
    batch_tokens: int = Field(default=1440, ge=16, multiple_of=16)
    """Tokens of a batch, padding included. With many divisors little is padded."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Of Muon and AdamW, at its highest: after the warm-up and until half of the steps are done; then it
    falls to 0."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(default=0.05, ge=0)
    """On matrices; embeddings and norms have none."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""

    immediate_share: float = Field(default=0.0, ge=0, le=1)
    """Share of traces that run every block at once. Above 0 the model writes both ways, so that a later stage
    has a choice to learn."""
    detour_share: float = Field(default=0.05, ge=0, le=1)
    """Share of traces with an output that the code does not explain: a failed sandbox, nothing at all."""
    slip_share: float = Field(default=0.0, ge=0, le=1)
    """Share of traces that end with a wrong answer: an operand miscopied, a value made up, an output misread.
    A model taught with them errs as often, which a later stage can unlearn."""

    natural_share: float = Field(default=0.55, ge=0, le=1)
    """Share of everyday questions in free wordings; the rest are the families of larger problems."""
    ordinary_share: float = Field(default=0.2, ge=0, le=1)
    """Share of texts that are not arithmetic, which get the honest reply."""
    earlier_share: float = Field(default=0.15, ge=0, le=1)
    """Share of traces with earlier turns in the conversation."""

    hidden_size: int = Field(default=192, ge=8)
    """Width."""
    layers: int = Field(default=4, ge=1)
    """Depth."""
    heads: int = Field(default=6, ge=1)
    """Query heads; there are 2 key and value heads."""
    head_dim: int = Field(default=32, ge=2)
    """Width of a head."""
    intermediate_size: int = Field(default=512, ge=8)
    """Width of the MLP."""
    words: int = Field(default=1000, ge=1)
    """Merges of the tokenizer, beside the 1,110 pieces of numbers."""

    threads: int | None = Field(default=None, ge=1)
    """CPU threads; more than ``batches_per_step`` are not used. Default: one a core."""
    measure_every: int = Field(default=100, ge=1)
    """Steps between measurements of held-out copy accuracy."""
    save_every: int = Field(default=250, ge=1)
    """Steps between states to go on from after a crash."""
    policy: DeferralPolicy = DeferralPolicy(
        prompt="brief-v1", max_turn_tokens=512, max_episode_tokens=2048, run_limit_s=3.0
    )
    """What goes into ``deferral.json``; the traces are written by it."""

    @property
    def style(self) -> Style:
        return Style(
            immediate_share=self.immediate_share,
            detour_share=self.detour_share,
            slip_share=self.slip_share,
            natural_share=self.natural_share,
            ordinary_share=self.ordinary_share,
            earlier_share=self.earlier_share,
        )

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step ``step``, counted from 0: up, level until half way, then down in a line."""
        planned = self.learning_steps or self.steps
        up = min(1.0, (step + 1) / (self.warmup_steps + 1))
        down = min(1.0, 2 * (planned - step) / planned)
        return self.learning_rate * min(up, max(down, 0.0))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a recipe.

        Raises:
            RecipeError: it can't be read, or a field is wrong.
        """
        try:
            return cls.model_validate(tomllib.loads(find_recipe(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise RecipeError(f"recipe {path} can't be read: {error.strerror}") from None
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"recipe {path} is not TOML: {error}") from None
        except ValidationError as error:
            lines = "".join(f"\n  {line}" for line in explain(error, cls))
            raise RecipeError(f"recipe {path}:{lines}") from None
