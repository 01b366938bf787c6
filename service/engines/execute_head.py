"""The execute head of a checkpoint: a second, linear head that decides when pending code runs (EH-GRPO).

The policy has two levels. With ``h = weight @ hidden + bias`` and a temperature T, the execute marker has
the probability ``sigmoid(h / T)``. All other tokens share the rest in proportion to the softmax of their
logits, so the marker's own row of the LM head has no effect. The file ``execute_head.json`` beside the
weights has the values.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from service.engines.base import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

FILE_NAME: Final = "execute_head.json"
PREFIX: Final = "execute_head."
"""Prefix of the head's names among the weights of a model in training."""


@dataclass(frozen=True, slots=True)
class ExecuteHead:
    """The values of an execute head."""

    marker: str
    """The execute marker, a token of the checkpoint's vocabulary."""
    weight: tuple[float, ...]
    """One value per entry of the last hidden state."""
    bias: float

    @classmethod
    def load(cls, directory: Path) -> ExecuteHead | None:
        """Return the head of a checkpoint, or None if it has none.

        Raises:
            EngineError: the file is invalid.
        """
        path = directory / FILE_NAME
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(str(values["marker"]), tuple(map(float, values["weight"])), float(values["bias"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(f"{path} is not an execute head: {error!r}") from error

    def save(self, directory: Path) -> None:
        values = {"marker": self.marker, "weight": self.weight, "bias": self.bias}
        (directory / FILE_NAME).write_text(json.dumps(values) + "\n", encoding="utf-8")


def reject_execute_head(model: str, engine: str) -> None:
    """Raise EngineError if the checkpoint has an execute head, which ``engine`` cannot apply."""
    if (Path(model) / FILE_NAME).is_file():
        raise EngineError(
            f"{model} has an execute head ({FILE_NAME}), which {engine} does not support: use the embedded "
            "engine (--engine transformers)"
        )


def apply_execute_head(
    logits: Tensor, decisions: Tensor, marker_id: int, temperatures: Sequence[float]
) -> Tensor:
    """Return logits whose softmax at each row's temperature is the two-level policy.

    Args:
        logits: [B, V] of the LM head; changed in place.
        decisions: [B], the execute head's ``h``.
        marker_id: id of the execute marker.
        temperatures: one per row; 0 is greedy, which executes if ``h`` is above 0.
    """
    import torch

    logits[:, marker_id] = -torch.inf
    scale = torch.tensor(temperatures, dtype=logits.dtype, device=logits.device).clamp(min=1e-5)
    rest = torch.logsumexp(logits / scale[:, None], dim=-1) * scale
    logits[:, marker_id] = decisions.to(logits.dtype) + rest
    return logits


def split_execute_head(
    state: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], tuple[int, Tensor, Tensor] | None]:
    """Split weights by parameter name into those of the model, and marker id, weight [H] and bias of its
    execute head."""
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(PREFIX)}
    if len(rest) == len(state):
        return rest, None
    marker_id, weight, bias = (state[f"{PREFIX}{name}"] for name in ("marker_id", "weight", "bias"))
    return rest, (int(marker_id), weight.detach().float().reshape(-1), bias.detach().float().reshape(()))
