from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from service.api.sse import until_disconnect


async def stays() -> Any:
    await asyncio.Event().wait()


async def leaves() -> Any:
    return {"type": "http.disconnect"}


async def test_until_disconnect_returns_the_result() -> None:
    async def work() -> int:
        return 7

    assert await until_disconnect(stays, work()) == 7


async def test_error_of_the_work_is_raised() -> None:
    async def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await until_disconnect(stays, work())


async def test_disconnect_cancels_the_work_and_awaits_its_cleanup() -> None:
    log = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            log.append("cleaned up")

    with pytest.raises(ClientDisconnect):
        await until_disconnect(leaves, work())
    assert log == ["cleaned up"]


async def test_cancellation_cancels_the_work() -> None:
    log = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            log.append("cancelled")

    task = asyncio.create_task(until_disconnect(stays, work()))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert log == ["cancelled"]
