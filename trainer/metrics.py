"""Figures as (sum, count) pairs: adding the pairs of several processes gives their exact mean."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from accelerate import Accelerator


class Means:
    """Running means by name. Not thread-safe."""

    def __init__(self) -> None:
        self._pairs: defaultdict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))

    def add(self, name: str, total: float, count: float = 1.0) -> None:
        """Add ``count`` items that sum to ``total``."""
        old_total, old_count = self._pairs[name]
        self._pairs[name] = (old_total + float(total), old_count + float(count))

    def reduced(self, accelerator: Accelerator) -> Mapping[str, float]:
        """Means over all processes, which must have the same names."""
        names = sorted(self._pairs)
        pairs = torch.tensor([self._pairs[name] for name in names], dtype=torch.float64, device="cpu")
        if accelerator.num_processes > 1:
            pairs = accelerator.reduce(pairs.to(accelerator.device, torch.float32)).cpu()
        return {
            name: total / count
            for name, (total, count) in zip(names, pairs.reshape(-1, 2).tolist(), strict=True)
            if count
        }
