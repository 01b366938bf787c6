from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from service.api.responses.run import EventLog
from service.store.responses import ResponseStore
from tests.support.stored import Clock, stored


@pytest.fixture
async def store() -> AsyncGenerator[ResponseStore, None]:
    store = ResponseStore("sqlite://", clock=Clock())
    await store.start()
    await store.put(stored("resp_1", status="in_progress"))
    yield store
    await store.stop()


def event(number: int) -> dict[str, object]:
    return {"sequence_number": number}


async def read(log: EventLog, after: int = -1) -> list[Any]:
    return [event["sequence_number"] async for event in log.read(after)]


async def test_late_readers_see_all_events_in_order(store: ResponseStore) -> None:
    log = EventLog(store, "resp_1")
    early = asyncio.create_task(read(log))
    for number in range(100):
        await log.add(event(number))
        if number == 80:
            middle = asyncio.create_task(read(log, after=30))
        if number % 7 == 0:
            await asyncio.sleep(0)
    await log.close()
    assert await early == list(range(100))
    assert await middle == list(range(31, 100))
    assert await read(log, after=97) == [98, 99]
    assert [event["sequence_number"] for event in await store.events_after("resp_1", -1)] == list(range(100))


async def test_only_the_latest_events_are_in_memory(store: ResponseStore) -> None:
    log = EventLog(store, "resp_1")
    for number in range(1000):
        await log.add(event(number))
        assert len(log._tail) < 65


async def test_reader_of_a_deleted_response_ends(store: ResponseStore) -> None:
    log = EventLog(store, "resp_1")
    for number in range(70):
        await log.add(event(number))
    await store.delete("resp_1", "me")
    assert await read(log) == []


async def test_cancelled_writer_leaves_no_gap(store: ResponseStore) -> None:
    log = EventLog(store, "resp_1")
    for number in range(63):
        await log.add(event(number))
    adding = asyncio.create_task(log.add(event(63)))  # this one stores the batch
    await asyncio.sleep(0)
    adding.cancel()
    await asyncio.gather(adding, return_exceptions=True)
    await log.add(event(64))
    await log.close()
    assert [event["sequence_number"] for event in await store.events_after("resp_1", -1)] == list(range(65))
