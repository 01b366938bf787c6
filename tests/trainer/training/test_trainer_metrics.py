from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.training.trainer import Means


def test_means_are_of_all_items_not_of_means() -> None:
    means = Means()
    means.add("a", 1.0, 1.0)
    means.add("a", 9.0, 9.0)
    means.add("nothing", 0.0, 0.0)
    alone: Any = SimpleNamespace(num_processes=1)
    assert means.reduced(alone) == {"a": 1.0}
    assert Means().reduced(alone) == {}


def test_pairs_add_up_over_processes() -> None:
    means = Means()
    means.add("a", 1.0, 1.0)
    other = torch.tensor([[5.0, 2.0]])
    two: Any = SimpleNamespace(num_processes=2, device="cpu", reduce=lambda pairs: pairs + other)
    assert means.reduced(two) == {"a": pytest.approx(2.0)}
