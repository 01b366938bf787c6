"""vLLM's answer to a streamed ``/v1/completions``, event by event."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Any, Final

from service.engines.base import FinishReason, RefusedError
from service.engines.pieces import Piece, likeliest

_TOKEN = "token_id:"  # noqa: S105  # how ``return_tokens_as_token_ids`` spells a token


REFUSED: Final = (400, 422)
"""Statuses, in the head or in an event, of what the client asked for in vain."""


class StreamError(Exception):
    """The stream is not what vLLM sends to the end of a call."""


async def read_pieces(lines: AsyncIterator[str], top: int) -> AsyncGenerator[Piece, None]:
    """The tokens in server-sent ``lines``; ``top`` alternatives a token were asked for.

    The last piece waits for the usage that follows it, which says how much of the prompt was cached.

    Raises:
        RefusedError: the server does not take the request.
        StreamError: the server reports an error, says what can't be read, or ends before its last token.
    """
    last: Piece | None = None
    async for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            break
        event = _parse(data)
        if last is not None:
            last = replace(last, cached_tokens=_cached(event))
        for choice in event["choices"]:
            piece = _piece(choice, top)
            if piece.finish_reason is not None:
                last = piece
            elif piece.ids:
                yield piece
    if last is None:
        raise StreamError("the stream ended before its last token")
    yield last


def _parse(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        raise StreamError(f"an event is no JSON: {data[:200]!r}") from None
    if not isinstance(event, dict) or "choices" not in event:
        error = event.get("error", event) if isinstance(event, dict) else event
        message = str(error.get("message", error) if isinstance(error, dict) else error)[:1000]
        if isinstance(error, dict) and error.get("code") in REFUSED:
            raise RefusedError(f"vLLM: {message}")
        raise StreamError(message)
    return event


def _piece(choice: dict[str, Any], top: int) -> Piece:
    if (ids := choice.get("token_ids")) is None:
        raise StreamError("there are no token_ids in its answer: it needs vLLM 0.11 or newer")
    finish_reason: FinishReason | None = choice.get("finish_reason")
    if finish_reason not in (None, "stop", "length"):
        raise StreamError(f"it ended the request: {finish_reason}")
    logprobs = choice.get("logprobs")
    if logprobs is None:
        return Piece(ids, finish_reason=finish_reason)
    entries = logprobs["top_logprobs"] if top else ()
    tops = tuple(
        likeliest({int(token.removeprefix(_TOKEN)): logprob for token, logprob in entry.items()}, top)
        for entry in entries
    )
    return Piece(ids, logprobs["token_logprobs"], tops, finish_reason=finish_reason)


def _cached(event: dict[str, Any]) -> int | None:
    """None unless the server was started with ``--enable-prompt-tokens-details``."""
    details = (event.get("usage") or {}).get("prompt_tokens_details") or {}
    cached: int | None = details.get("cached_tokens")
    return cached
