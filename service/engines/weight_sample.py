"""A small sample of a checkpoint's weights, to compare the base of an adapter with another checkpoint.

A hash only shows that two checkpoints differ. The sample also shows by how much: a model that was quantised
and converted back differs by a few per cent, another model by much more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

MAX_TENSORS: Final = 32
VALUES: Final = 16
"""Values per tensor, at equal distances."""

WeightSample = Mapping[str, Sequence[float]]
"""Values of some tensors, by name."""


def sample_weights(checkpoint: Path) -> dict[str, list[float]]:
    """Return values of up to 32 matrices of a checkpoint, evenly spread over the sorted names.

    Raises:
        ValueError: the checkpoint has no safetensors files, or no matrices.
    """
    names = sorted(name for name, shape in _shapes(checkpoint).items() if len(shape) == 2)
    if not names:
        raise ValueError(f"{checkpoint} has no weights in *.safetensors")
    count = min(MAX_TENSORS, len(names))
    chosen = {names[index * len(names) // count] for index in range(count)}
    values = _read_values(checkpoint, chosen)
    return {name: [float(f"{value:.5g}") for value in values[name]] for name in sorted(values)}


def relative_difference(sample: WeightSample, checkpoint: Path) -> float | None:
    """Return the norm of the difference between ``sample`` and the weights of ``checkpoint``, divided by the
    norm of ``sample``. None if the sample is empty or ``checkpoint`` lacks one of its tensors."""
    values = _read_values(checkpoint, set(sample))
    if not sample or set(values) != set(sample):
        return None
    pairs = [(a, b) for name, given in sample.items() for a, b in zip(given, values[name], strict=True)]
    norm = math.sqrt(sum(a * a for a, _ in pairs))
    return math.sqrt(sum((a - b) ** 2 for a, b in pairs)) / norm if norm else None


def _shapes(checkpoint: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    shapes = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names: list[str] = list(file.keys())
            shapes.update({name: file.get_slice(name).get_shape() for name in names})
    return shapes


def _read_values(checkpoint: Path, names: set[str]) -> dict[str, list[float]]:
    """Return `VALUES` values of each tensor in ``names`` that the checkpoint has."""
    import torch
    from safetensors import safe_open

    found: dict[str, list[float]] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in names.intersection(file.keys()):
                flat = file.get_tensor(name).flatten()
                places = torch.linspace(0, len(flat) - 1, VALUES, dtype=torch.float64).long()
                found[name] = flat[places].tolist()
    return found
