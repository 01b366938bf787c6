"""Helpers that collect an engine's stream and compare it with a plain forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from service.engines.base import Engine, Sampling, TokenChunk
from tests.support.tokens import sampled


async def collect(
    engine: Engine, ids: Sequence[int], sampling: Sampling, stop: Sequence[int] = ()
) -> list[TokenChunk]:
    """Collect all chunks of one call."""
    return [chunk async for chunk in engine.generate(ids, sampling, stop)]


@torch.inference_mode()
def assert_greedy(
    model: torch.nn.Module, ids: Sequence[int], chunks: Sequence[TokenChunk], *, atol: float = 1e-4
) -> None:
    """Check that samples and logprobs match one forward pass over prompt and samples."""
    output = sampled(chunks)
    logits = model(input_ids=torch.tensor([[*ids, *output]]), use_cache=False).logits[0]
    logprobs = logits[len(ids) - 1 : -1].log_softmax(-1)
    assert output == logprobs.argmax(-1).tolist()
    found = [logprob for chunk in chunks for logprob in chunk.logprobs]
    assert found == pytest.approx(logprobs.max(-1).values.tolist(), abs=atol)
