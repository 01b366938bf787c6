from __future__ import annotations

from collections.abc import AsyncGenerator
from math import isnan
from pathlib import Path

import pytest

from service.engines.base import EngineError
from service.engines.model_config import ModelFiles
from service.engines.token_stream import EngineCounters, SampledTokens, to_chunks


@pytest.fixture(scope="module")
def files(tiny_checkpoint: Path) -> ModelFiles:
    return ModelFiles(str(tiny_checkpoint))


async def stream(*pieces: SampledTokens | Exception) -> AsyncGenerator[SampledTokens, None]:
    for piece in pieces:
        if isinstance(piece, Exception):
            raise piece
        yield piece


async def test_text_is_complete_at_the_end(files: ModelFiles) -> None:
    ids = files.tokenizer.encode("x = 42 é", allow_special=True)
    half = files.tokenizer.encode("é", allow_special=True)[:1]  # the first of two bytes of a character
    pieces = stream(
        SampledTokens(ids[:3], [-1.0] * 3),
        SampledTokens(ids[3:], [-1.0] * len(ids[3:])),
        SampledTokens(half, [-2.0], finish_reason="length"),
    )
    out = [chunk async for chunk in to_chunks(pieces, files.detokenizer(), EngineCounters(), 5)]
    assert "".join(chunk.text for chunk in out) == "x = 42 é\N{REPLACEMENT CHARACTER}"
    assert [chunk.ids for chunk in out] == [tuple(ids[:3]), tuple(ids[3:]), tuple(half)]
    assert out[-1].finish_reason == "length"


async def test_unrequested_logprobs_are_nan(files: ModelFiles) -> None:
    [chunk] = [
        chunk
        async for chunk in to_chunks(stream(SampledTokens([1, 2])), files.detokenizer(), EngineCounters(), 1)
    ]
    assert len(chunk.logprobs) == 2
    assert all(map(isnan, chunk.logprobs))


async def test_counters(files: ModelFiles) -> None:
    counters = EngineCounters()
    one = to_chunks(
        stream(SampledTokens([1]), SampledTokens([2, 3], cached_tokens=16, finish_reason="stop")),
        files.detokenizer(),
        counters,
        20,
    )
    seen = [(counters.running, counters.waiting, counters.generated_tokens) async for _ in one]
    assert seen == [(1, 0, 1), (1, 0, 3)]
    stats = counters.stats()
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens) == (20, 16, 3)
    assert (stats.running, stats.waiting) == (0, 0)


@pytest.mark.parametrize("sampled", [(), (SampledTokens([1]),)])
async def test_gauges_return_to_zero_after_failed_or_closed_calls(
    files: ModelFiles, sampled: tuple[SampledTokens, ...]
) -> None:
    counters = EngineCounters()
    failing = to_chunks(stream(*sampled, EngineError("broken")), files.detokenizer(), counters, 1)
    for _ in sampled:
        await anext(failing)
    with pytest.raises(EngineError, match="broken"):
        await anext(failing)
    closed = to_chunks(stream(SampledTokens([1]), SampledTokens([2])), files.detokenizer(), counters, 1)
    await anext(closed)
    await closed.aclose()
    assert (counters.running, counters.waiting) == (0, 0)
