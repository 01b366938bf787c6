"""OpenAI's log-probability objects."""

from __future__ import annotations

from service.api.wire import Json
from service.engines.base import TokenChunk, Tokenizer

LEAST = -9999.0
"""Stands for minus infinity, which JSON lacks."""


def logprob_item(chunk: TokenChunk, at: int, tokenizer: Tokenizer) -> Json:
    """The token at place ``at`` of ``chunk``, with its alternatives."""
    top = chunk.top_logprobs[at] if chunk.top_logprobs else ()
    return {
        **_token(chunk.ids[at], chunk.logprobs[at], tokenizer),
        "top_logprobs": [_token(item.token_id, item.logprob, tokenizer) for item in top],
    }


def _token(token_id: int, logprob: float, tokenizer: Tokenizer) -> Json:
    token = tokenizer.decode([token_id])
    # A token that holds part of a character decodes to a replacement; its bytes are not known here.
    known = "\ufffd" not in token
    return {
        "token": token,
        "logprob": max(logprob, LEAST),
        "bytes": list(token.encode("utf-8", "surrogatepass")) if known else None,
    }
