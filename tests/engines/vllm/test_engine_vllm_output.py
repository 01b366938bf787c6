from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from service.engines.base import EngineError, TopLogprob
from service.engines.token_stream import Piece
from service.engines.vllm.engine import to_piece


def output(ids: list[int], positions: list[list[tuple[int, float]]] | None, reason: str | None = None) -> Any:
    """Shaped as vLLM's RequestOutput with FlatLogprobs."""
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
def test_the_sampled_token_comes_first_and_may_be_among_the_likeliest_or_not(
    again: list[tuple[int, float]],
) -> None:
    said = output([5, 6], [again, [(6, -4.0), (9, -0.2), (7, -2.5)]], "stop")
    piece = to_piece(said, False, 2)
    assert piece == Piece(
        [5, 6],
        [-0.1, -4.0],
        ((TopLogprob(5, -0.1), TopLogprob(7, -2.0)), (TopLogprob(9, -0.2), TopLogprob(7, -2.5))),
        None,
        "stop",
    )


def test_what_was_not_asked_for_is_left_out() -> None:
    assert to_piece(output([5], [[(5, -0.1)]]), True, 0) == Piece([5], [-0.1], (), 32, None)
    assert to_piece(output([5], None), True, 0) == Piece([5], None, (), 32, None)


def test_a_request_that_was_given_up() -> None:
    with pytest.raises(EngineError, match="vLLM ended the request: abort"):
        to_piece(output([], None, "abort"), False, 0)
