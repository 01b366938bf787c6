from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from service.api.state import merged
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve


def value(text: str, name: str) -> float:
    [line] = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(line.rsplit(" ", 1)[1])


async def test_time_between_tokens_excludes_the_wait_for_code() -> None:
    engine = ScriptedEngine("```python\nprint(1)\n```<tool_call>", "\\boxed{1}" + EOS)
    app = make_app(engine, ScriptedSandbox(lambda blocks: printed("1"), delay_s=0.3))
    messages: Any = [{"role": "user", "content": "?"}]
    async with serve(app) as served, httpx.AsyncClient(base_url=served.url) as client:
        await served.openai.chat.completions.create(model="scripted", messages=messages, n=1)
        text = (await client.get("/metrics")).text
    assert value(text, "ihgrpo_first_token_seconds_count") == 1
    assert value(text, "ihgrpo_queue_seconds_count") == 1
    sampled = value(text, "ihgrpo_sampled_tokens_total")
    # One fewer than tokens in each of two turns, and one more is lost at the invocation.
    assert value(text, "ihgrpo_inter_token_seconds_count") == sampled - 3
    assert 'ihgrpo_request_seconds_count{route="/v1/chat/completions"} 1.0' in text
    slow = 'ihgrpo_inter_token_seconds_bucket{le="0.25"}'
    assert value(text, slow) == sampled - 3


class Source:
    """A stream of 0, 1, 2, ... that records whether it was closed."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.closed = False
        self._count = count
        self._error = error

    async def items(self) -> AsyncGenerator[int, None]:
        try:
            for item in range(self._count):
                await asyncio.sleep(0)
                yield item
            if self._error is not None:
                raise self._error
        finally:
            self.closed = True


@pytest.mark.parametrize("count", [1, 3])
async def test_merged_keeps_the_order_of_each_stream(count: int) -> None:
    got = [item async for item in merged([Source(100).items() for _ in range(count)])]
    for index in range(count):
        assert [item for at, item in got if at == index] == list(range(100))


async def test_error_in_one_merged_stream_closes_all() -> None:
    bad, good = Source(2, ValueError("no")), Source(10**9)
    with pytest.raises(ValueError, match="no"):
        async for _ in merged([good.items(), bad.items()]):
            pass
    assert bad.closed
    assert good.closed


async def test_closing_merged_closes_all() -> None:
    sources = [Source(10**9), Source(10**9)]
    stream = merged([source.items() for source in sources])
    await anext(stream)
    await stream.aclose()
    assert all(source.closed for source in sources)
