"""Tables of a training recipe (``[lora]``, ``[off_policy]``, ``[validation]``) and its methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class LoraSettings(BaseModel):
    """Train a low-rank adapter (LoRA, arXiv 2106.09685) in float32 and keep the model's weights frozen.

    The execute marker's embedding row is part of the adapter by default. In some released models that row
    was never trained: it equals the rows of unused ids, so an adapter of linear layers alone cannot
    distinguish it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    rank: int = Field(default=16, ge=1)
    """Rank of the two factors of each layer."""
    alpha: int | None = Field(default=None, ge=1)
    """The product is scaled by ``alpha / rank``. Default: twice the rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input. Reinforcement learning takes 0: the sampler has no dropout."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Adapted layers: all linear layers except the LM head, or module names such as ``q_proj``."""
    train_marker: bool = True
    """Train the marker's row in the embedding and in the LM head, tied or separate."""
    marker_lr: float | None = Field(default=None, gt=0)
    """Learning rate of that row, which has no weight decay. Default: ``learning_rate`` in reinforcement
    learning; 2e-2 in a warm start, where the row may have to be learned from scratch."""
    adapter: Path | None = None
    """Directory of an adapter to continue training, instead of a new one. It was trained on ``model``; rank,
    alpha, dropout and targets are its own."""
    base_name: str | None = None
    """Hub id to write into the adapter as the name of its base model. Default: ``model`` if that is a hub id.
    Directories are never written: they mean nothing on another machine."""

    @property
    def effective_alpha(self) -> int:
        return 2 * self.rank if self.alpha is None else self.alpha


Weights = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]

_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "none": (0.0, float("inf")),
    "token_truncate": (0.0, 2.0),
    "token_mask": (0.5, 5.0),
    "sequence_truncate": (0.0, 2.0),
    "sequence_mask": (0.0, 2.0),
}


class OffPolicySettings(BaseModel):
    """Correct for the difference between the policy that sampled and the policy that is trained.

    Sampler and trainer have the same weights, but their kernels and precision differ. With a
    correction, the clipped ratio is taken to the trainer's own log-probs from before the update, and each
    token's loss is weighted by ``trainer / sampler``. The bounds' defaults are those of the literature:

    - ``token_truncate``: weights above 2 are cut to 2 (Yao et al. 2025, "Your efficient RL framework secretly
      brings you off-policy RL training"; also the default of verl).
    - ``token_mask``: tokens whose weight is outside 0.5 to 5 are left out (IcePop, arXiv 2510.18855).
    - ``sequence_truncate``, ``sequence_mask``: the same with one weight per sample, the product over its
      tokens, and 2 as the upper bound (Liu et al. 2025, "When speed kills stability"; verl's default).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    weights: Weights = "none"
    """Importance weights: none, or by token or sample, cut to the bounds or left out outside of them."""
    max_weight: float | None = Field(default=None, gt=0)
    """Upper bound. Default: by ``weights``, see above."""
    min_weight: float | None = Field(default=None, ge=0)
    """Lower bound. Default: by ``weights``; 0 disables it."""
    max_drift: float | None = Field(default=None, gt=0)
    """Reject a sample if the mean of ``log(trainer / sampler)`` over its tokens is further from 0 than this.
    verl's documentation suggests 0.0002 to 0.001 for long samples. Default: no rejection."""
    veto_below: float | None = Field(default=None, gt=0, lt=1)
    """Reject a sample if any of its tokens has a weight below this; 1e-4 to 1e-6 in verl's documentation.
    Default: no rejection."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self.bounds
        if low > high:
            raise ValueError(f"min_weight is {low}, above max_weight {high}")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest weight."""
        low, high = _BOUNDS[self.weights]
        return (
            low if self.min_weight is None else self.min_weight,
            high if self.max_weight is None else self.max_weight,
        )

    @property
    def removes_tokens(self) -> bool:
        """Whether tokens or samples may be left out of the loss and of its denominator."""
        is_mask = self.weights in ("token_mask", "sequence_mask")
        return is_mask or self.max_drift is not None or self.veto_below is not None

    @property
    def is_on(self) -> bool:
        return self.weights != "none" or self.removes_tokens


class ValidationSettings(BaseModel):
    """Episodes on held-out problems during training."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    data: tuple[str, ...] = Field(min_length=1)
    """Validation problems; sources as in ``data`` of the recipe."""
    every: int = Field(default=10, ge=1)
    """Steps between validations. The model is also validated before the first step and after the last."""
    samples: int = Field(default=1, ge=1)
    """Samples per problem, with the recipe's ``temperature`` and ``top_p``."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first problems, up to this number."""

    @field_validator("data", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


Method = Literal[
    "ih-grpo", "eh-grpo", "grpo", "dapo", "dr-grpo", "simpletir", "grpo-delayed", "grpo-immediate"
]
Execution = Literal["delayed", "immediate"]
Aggregation = Literal["token-mean", "sample-mean", "constant"]

PRESETS: Final[dict[str, dict[str, Any]]] = {
    "ih-grpo": {},
    "eh-grpo": {},
    "grpo": {
        "clip_high": 0.2, "dual_clip": 0, "aggregation": "sample-mean", "mask_void": False,
        "min_group_std": 0,
    },
    "dapo": {"dual_clip": 0, "mask_void": False, "overlong_buffer": 0.25},
    "dr-grpo": {
        "clip_high": 0.2, "dual_clip": 0, "aggregation": "constant", "scale_advantages": False,
        "mask_void": False, "min_group_std": 0,
    },
    "simpletir": {"dual_clip": 0},
    "grpo-delayed": {"execution": "delayed"},
    "grpo-immediate": {"execution": "immediate"},
}  # fmt: skip
"""Values of fields that a recipe leaves out, by method. Only ``ih-grpo`` has the hierarchy term.

- ``eh-grpo``: the explicit two-level policy, by default with a second head; see `execute_head` in
  ``trainer/training/config.py``.
- ``grpo``: DeepSeekMath (arXiv 2402.03300), without its KL term, as in TRL; ``kl_weight = 0.04`` adds it.
- ``dapo``: arXiv 2503.14476: higher upper clip, mean over tokens, groups without signal dropped, and the soft
  penalty of answers that come near the length limit.
- ``dr-grpo``: arXiv 2503.20783: neither the group's deviation nor the sample's length divides.
- ``simpletir``: arXiv 2509.02479: samples with a void turn are masked.
- ``grpo-delayed``, ``grpo-immediate``: everything as for ``ih-grpo``, without the hierarchy term.
"""


def with_preset(values: dict[str, Any]) -> dict[str, Any]:
    """Return ``values`` of a recipe, completed by its method's preset.

    Raises:
        ValueError: method and execution contradict each other.
    """
    method = str(values.get("method", "ih-grpo"))
    preset = PRESETS.get(method, {})
    given = values.get("execution")
    if method in ("grpo-delayed", "grpo-immediate") and given not in (None, preset["execution"]):
        other = f"grpo-{given}"
        hint = f". Did you mean method {other!r}?" if other in PRESETS else ""
        raise ValueError(f"execution is {given!r}, but method {method!r} needs {preset['execution']!r}{hint}")
    return {**preset, **values}
