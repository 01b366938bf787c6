from __future__ import annotations

from collections.abc import AsyncGenerator
from math import isnan
from pathlib import Path

import pytest

from service.engines.base import EngineError
from service.engines.model_config import ModelFiles
from service.engines.token_stream import Piece, Tally, chunks


@pytest.fixture(scope="module")
def files(tiny_checkpoint: Path) -> ModelFiles:
    return ModelFiles(str(tiny_checkpoint))


async def stream(*pieces: Piece | Exception) -> AsyncGenerator[Piece, None]:
    for piece in pieces:
        if isinstance(piece, Exception):
            raise piece
        yield piece


async def test_text_follows_the_ids_and_is_whole_at_the_end(files: ModelFiles) -> None:
    ids = files.tokenizer.encode("x = 42 é", allow_special=True)
    half = files.tokenizer.encode("é", allow_special=True)[:1]  # the first byte of a character of two
    pieces = stream(
        Piece(ids[:3], [-1.0] * 3),
        Piece(ids[3:], [-1.0] * len(ids[3:])),
        Piece(half, [-2.0], finish_reason="length"),
    )
    out = [chunk async for chunk in chunks(pieces, files.detokenizer(), Tally(), 5)]
    assert "".join(chunk.text for chunk in out) == "x = 42 é\N{REPLACEMENT CHARACTER}"
    assert [chunk.ids for chunk in out] == [tuple(ids[:3]), tuple(ids[3:]), tuple(half)]
    assert out[-1].finish_reason == "length"


async def test_logprobs_that_nobody_asked_for_are_nan(files: ModelFiles) -> None:
    [chunk] = [chunk async for chunk in chunks(stream(Piece([1, 2])), files.detokenizer(), Tally(), 1)]
    assert len(chunk.logprobs) == 2
    assert all(map(isnan, chunk.logprobs))


async def test_counters(files: ModelFiles) -> None:
    tally = Tally()
    one = chunks(
        stream(Piece([1]), Piece([2, 3], cached_tokens=16, finish_reason="stop")),
        files.detokenizer(),
        tally,
        20,
    )
    seen = [(tally.running, tally.waiting, tally.generated_tokens) async for _ in one]
    assert seen == [(1, 0, 1), (1, 0, 3)]
    stats = tally.stats()
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens) == (20, 16, 3)
    assert (stats.running, stats.waiting) == (0, 0)


@pytest.mark.parametrize("said", [(), (Piece([1]),)])
async def test_a_failed_or_closed_call_leaves_no_trace_in_the_gauges(
    files: ModelFiles, said: tuple[Piece, ...]
) -> None:
    tally = Tally()
    failing = chunks(stream(*said, EngineError("broken")), files.detokenizer(), tally, 1)
    for _ in said:
        await anext(failing)
    with pytest.raises(EngineError, match="broken"):
        await anext(failing)
    closed = chunks(stream(Piece([1]), Piece([2])), files.detokenizer(), tally, 1)
    await anext(closed)
    await closed.aclose()
    assert (tally.running, tally.waiting) == (0, 0)
