from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from service.engines.base import EngineError, TopLogprob
from service.engines.token_stream import SampledTokens
from service.engines.vllm.engine import to_sampled_tokens


def output(ids: list[int], positions: list[list[tuple[int, float]]] | None, reason: str | None = None) -> Any:
    """Return an object like vLLM's RequestOutput with FlatLogprobs."""
    flat = None
    if positions is not None:
        flat = SimpleNamespace(start_indices=[], end_indices=[], token_ids=[], logprobs=[])
        for position in positions:
            flat.start_indices.append(len(flat.token_ids))
            for token_id, logprob in position:
                flat.token_ids.append(token_id)
                flat.logprobs.append(logprob)
            flat.end_indices.append(len(flat.token_ids))
    completion = SimpleNamespace(token_ids=ids, logprobs=flat, finish_reason=reason)
    return SimpleNamespace(outputs=[completion], num_cached_tokens=32)


@pytest.mark.parametrize(
    "again",
    [[(5, -0.1), (7, -2.0), (8, -3.0)], [(5, -0.1), (5, -0.1), (7, -2.0)]],
    ids=["merged", "named twice"],
)
def test_sampled_token_may_be_among_the_top_logprobs(
    again: list[tuple[int, float]],
) -> None:
    request_output = output([5, 6], [again, [(6, -4.0), (9, -0.2), (7, -2.5)]], "stop")
    tokens = to_sampled_tokens(request_output, False, 2)
    assert tokens == SampledTokens(
        [5, 6],
        [-0.1, -4.0],
        ((TopLogprob(5, -0.1), TopLogprob(7, -2.0)), (TopLogprob(9, -0.2), TopLogprob(7, -2.5))),
        None,
        "stop",
    )


def test_unrequested_logprobs_are_none() -> None:
    assert to_sampled_tokens(output([5], [[(5, -0.1)]]), True, 0) == SampledTokens([5], [-0.1], (), 32, None)
    assert to_sampled_tokens(output([5], None), True, 0) == SampledTokens([5], None, (), 32, None)


def test_aborted_request_is_an_error() -> None:
    with pytest.raises(EngineError, match="vLLM aborted the request: abort"):
        to_sampled_tokens(output([], None, "abort"), False, 0)
