from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from service.engines.base import InvalidRequestError, TopLogprob
from service.engines.remote.server import StreamError, read_tokens
from service.engines.token_stream import SampledTokens


def token(token_id: int, reason: str | None = None, **logprobs: object) -> str:
    choice = {"token_ids": [token_id], "finish_reason": reason, **logprobs}
    return "data: " + json.dumps({"choices": [choice]})


USAGE = 'data: {"choices": [], "usage": {"prompt_tokens_details": {"cached_tokens": 16}}}'
DONE = "data: [DONE]"


async def read(*lines: str, top: int = 0) -> list[SampledTokens]:
    async def stream() -> AsyncIterator[str]:
        for line in lines:
            yield line

    return [piece async for piece in read_tokens(stream(), top)]


async def test_last_tokens_carry_the_cached_count() -> None:
    assert await read(token(5), "", ": comment", token(6, "stop"), USAGE, DONE) == [
        SampledTokens([5]),
        SampledTokens([6], cached_tokens=16, finish_reason="stop"),
    ]


@pytest.mark.parametrize("usage", ['data: {"choices": [], "usage": {"prompt_tokens": 3}}', ": no usage"])
async def test_cached_count_is_optional(usage: str) -> None:
    (piece,) = await read(token(5, "length"), usage, DONE)
    assert piece.cached_tokens is None


async def test_alternatives_are_sorted_by_probability() -> None:
    tops = {"token_id:9": -4.0, "token_id:1": -0.5, "token_id:2": -0.25}
    logprobs = {"token_logprobs": [-4.0], "top_logprobs": [tops]}
    (piece,) = await read(token(9, "length", logprobs=logprobs), DONE, top=2)
    assert piece.logprobs == [-4.0]
    assert piece.top_logprobs == ((TopLogprob(2, -0.25), TopLogprob(1, -0.5)),)


async def test_empty_deltas_are_skipped() -> None:
    empty = 'data: {"choices": [{"token_ids": [], "finish_reason": null}]}'
    assert [piece.ids for piece in await read(empty, token(5), token(6, "stop"), DONE)] == [[5], [6]]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), "ended before its last token"),
        ((token(5), DONE), "ended before its last token"),
        (("data: {",), "an event is not JSON"),
        (('data: "x"',), "x"),
        (('data: {"error": {"message": "out of memory"}}',), "out of memory"),
        (('data: {"choices": [{"text": "a"}]}',), "response has no token_ids"),
        ((token(5, "abort"),), "the server aborted the request: abort"),
    ],
)
async def test_rejects_malformed_and_incomplete_streams(lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(StreamError, match=message):
        await read(*lines)


async def test_client_errors_are_invalid_requests() -> None:
    with pytest.raises(InvalidRequestError, match=r"^vLLM: no such grammar$"):
        await read('data: {"error": {"message": "no such grammar", "code": 400}}')
