from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from service.api.run import merged


class Source:
    """A stream of 0, 1, 2, ... that notes whether it was closed."""

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
async def test_each_stream_keeps_its_order(count: int) -> None:
    got = [item async for item in merged([Source(100).items() for _ in range(count)])]
    for index in range(count):
        assert [item for at, item in got if at == index] == list(range(100))


async def test_an_error_of_one_closes_all() -> None:
    bad, good = Source(2, ValueError("no")), Source(10**9)
    with pytest.raises(ValueError, match="no"):
        async for _ in merged([good.items(), bad.items()]):
            pass
    assert bad.closed
    assert good.closed


async def test_closing_closes_all() -> None:
    sources = [Source(10**9), Source(10**9)]
    stream = merged([source.items() for source in sources])
    await anext(stream)
    await stream.aclose()
    assert all(source.closed for source in sources)
