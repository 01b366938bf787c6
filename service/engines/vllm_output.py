"""What vLLM's engine hands out, in our own words."""

from __future__ import annotations

from typing import Any

from service.engines.base import EngineError, FinishReason, TopLogprob
from service.engines.pieces import Piece, likeliest


def to_piece(output: Any, is_first: bool, top: int) -> Piece:
    """One ``RequestOutput`` of a call, with ``top`` alternatives a token.

    Its flat logprobs hold, at each position, the sampled token and then the likeliest. These name the
    sampled one again, but not where vLLM has merged several steps.

    Raises:
        EngineError: vLLM gave the request up.
    """
    completion = output.outputs[0]
    if completion.finish_reason not in (None, "stop", "length"):
        raise EngineError(f"vLLM ended the request: {completion.finish_reason}")
    finish_reason: FinishReason | None = completion.finish_reason
    logprobs: list[float] | None = None
    tops: tuple[tuple[TopLogprob, ...], ...] = ()
    if (flat := completion.logprobs) is not None:
        spans = [slice(*span) for span in zip(flat.start_indices, flat.end_indices, strict=True)]
        logprobs = [flat.logprobs[span.start] for span in spans]
        if top:
            positions = [zip(flat.token_ids[span], flat.logprobs[span], strict=True) for span in spans]
            tops = tuple(likeliest(dict(position), top) for position in positions)
    cached = output.num_cached_tokens if is_first else None
    return Piece(completion.token_ids, logprobs, tops, cached, finish_reason)
