"""Helpers that collect an engine's stream and compare it with a plain forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    """Check that samples and logprobs match one forward pass over prompt and samples. A sample may be any
    token whose log-probability is the largest one up to ``atol``."""
    output = sampled(chunks)
    logits = model(input_ids=torch.tensor([[*ids, *output]]), use_cache=False).logits[0]
    logprobs = logits[len(ids) - 1 : -1].log_softmax(-1)
    expected = logprobs.gather(1, torch.tensor(output)[:, None])[:, 0].tolist()
    assert expected == pytest.approx(logprobs.max(-1).values.tolist(), abs=atol)
    found = [logprob for chunk in chunks for logprob in chunk.logprobs]
    assert found == pytest.approx(expected, abs=atol)


@dataclass(frozen=True)
class Reference:
    """The weights of an engine in transformers, and how exactly the engine computes them."""

    model: torch.nn.Module
    atol: float = 1e-4

    def assert_greedy(self, ids: Sequence[int], chunks: Sequence[TokenChunk]) -> None:
        """Check samples and logprobs; see the function of this name."""
        assert_greedy(self.model, ids, chunks, atol=self.atol)
