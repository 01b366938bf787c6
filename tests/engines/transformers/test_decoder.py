from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from transformers import PreTrainedModel

from service.engines.base import Sampling
from service.engines.settings import TransformersSettings
from service.engines.transformers import runner
from service.engines.transformers.runner import ModelRunner
from service.engines.transformers.scheduler import Request, Slot, Work
from tests.support.tiny_qwen3 import make_model, make_qwen2, make_tokenizer, save
from tests.support.tokens import prompt


def request(tokens: Sequence[int]) -> Request:
    nothing: Any = None
    return Request(list(tokens), Sampling(), frozenset(), 512, nothing, nothing)


def make_runner(model: PreTrainedModel, directory: Path) -> ModelRunner:
    settings = TransformersSettings(
        model=str(save(model, directory)), dtype="float32", device="cpu", max_slots=4
    )
    return ModelRunner(settings, model.config, 512)


@pytest.mark.parametrize("make", [make_model, make_qwen2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_word_embeddings": False, "num_key_value_heads": 4},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0}},
    ],
)
def test_matches_transformers(
    tmp_path: Path, make: Callable[..., PreTrainedModel], options: dict[str, Any]
) -> None:
    """In float32, over steps with chunks, single tokens and both, in slots that are not adjacent."""
    model = make(make_tokenizer(), **options)
    theirs = make_runner(model, tmp_path)
    with (
        patch.object(runner, "can_pack", lambda *_: True),
        patch.object(runner, "pack_linears", lambda _: None),
    ):
        ours = make_runner(model, tmp_path)
    assert theirs._decoder is None
    assert ours._decoder is not None
    requests = [request(prompt(40, seed=n)) for n in range(3)]
    slots = [Slot(0), Slot(1), Slot(3)]
    steps = [
        [(0, 0, 30)],
        [(0, 30, 31), (1, 0, 25), (2, 0, 1)],
        [(0, 31, 32), (1, 25, 26), (2, 1, 2)],
        [(0, 32, 40), (1, 26, 40), (2, 2, 40)],
    ]
    with torch.inference_mode():
        for step in steps:
            plan = [Work(requests[n], slots[n], start, stop) for n, start, stop in step]
            (_, expected, _), (_, found, _) = theirs.forward(plan), ours.forward(plan)
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert found.shape == (3, model.config.vocab_size)


def test_other_activations_use_transformers(tmp_path: Path) -> None:
    model = make_qwen2(make_tokenizer(), hidden_act="gelu")
    with (
        patch.object(runner, "can_pack", lambda *_: True),
        patch.object(runner, "pack_linears", lambda _: None),
    ):
        assert make_runner(model, tmp_path)._decoder is None
