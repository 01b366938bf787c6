"""Counts of use in the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncEngine

from service.store.database import open_database, prepare
from service.store.replies import ReplyStore
from service.store.responses import ResponseStore
from service.store.tables import responses, usage_hours
from service.store.usage import DAY_S, HOUR_S, Consumption, UsageStore, day_start, month_start, next_month
from tests.support.stored import Clock, stored

NOON: float = 1_784_980_800.0
"""2026-07-25 12:00 UTC."""


@pytest.fixture
async def engine(store_url: str) -> AsyncGenerator[AsyncEngine, None]:
    engine = open_database(store_url)
    await prepare(engine)
    async with engine.begin() as connection:
        await connection.execute(delete(usage_hours))
        await connection.execute(delete(responses))
    yield engine
    await engine.dispose()


@pytest.fixture
def clock() -> Clock:
    return Clock(NOON)


@pytest.fixture
def usage(engine: AsyncEngine, clock: Clock) -> UsageStore:
    return UsageStore(engine, days=60, clock=clock)


async def test_concurrent_additions_are_all_counted(usage: UsageStore) -> None:
    await asyncio.gather(*(usage.add("me", "m", Consumption(1, 10, 5, 0.5)) for _ in range(20)))
    await usage.add("me", "n" * 300, Consumption(1, 1))
    day, month = await usage.current("me")
    assert day == month == Consumption(21, 201, 100, 10.0)
    assert day.tokens == 301
    assert (await usage.current("someone else"))[0] == Consumption()


async def test_days_and_months_are_those_of_utc(usage: UsageStore, clock: Clock) -> None:
    await usage.add("me", "m", Consumption(1, 10))
    clock.now += 12 * HOUR_S
    day, month = await usage.current("me")
    assert (day.requests, month.requests) == (0, 1)
    clock.now = NOON + 7 * DAY_S  # in August
    assert [one.requests for one in await usage.current("me")] == [0, 0]
    assert (day_start(NOON), month_start(NOON)) == (NOON - 12 * HOUR_S, NOON - 12 * HOUR_S - 24 * DAY_S)
    assert next_month(NOON) == month_start(NOON) + 31 * DAY_S


async def test_results_are_grouped_by_time_owner_and_model(usage: UsageStore, clock: Clock) -> None:
    for owner, model in (("a", "m"), ("a", "n"), ("b", "m")):
        await usage.add(owner, model, Consumption(1, 10))
    clock.now += HOUR_S
    await usage.add("a", "m", Consumption(1, 1))
    start, end = day_start(NOON), day_start(NOON) + DAY_S

    async def read(width_s: int, **more: object) -> list[tuple[int, str | None, str | None, int]]:
        found = await usage.results(start, end, width_s=width_s, **more)  # type: ignore[arg-type]
        return [(one.start, one.owner, one.model, one.used.input_tokens) for one in found]

    assert await read(DAY_S) == [(start, None, None, 31)]
    assert await read(HOUR_S) == [(NOON, None, None, 30), (NOON + HOUR_S, None, None, 1)]
    assert await read(DAY_S, by_owner=True) == [(start, "a", None, 21), (start, "b", None, 10)]
    assert await read(DAY_S, owners=["a"], by_model=True) == [(start, None, "m", 11), (start, None, "n", 10)]
    assert await read(DAY_S, models=["n"], owners=["b"]) == []


async def test_old_counts_are_removed_but_none_of_the_month(usage: UsageStore, clock: Clock) -> None:
    await usage.add("me", "m", Consumption(1))
    clock.now += 61 * DAY_S
    await usage.add("me", "m", Consumption(1))
    await usage.clean()
    found = await usage.results(0, int(clock.now) + 1, width_s=HOUR_S)
    assert [one.start for one in found] == [int(clock.now) // HOUR_S * HOUR_S]
    short = UsageStore(usage._engine, days=1, clock=clock)
    clock.now += 3 * DAY_S
    await short.clean()
    assert (await usage.current("me"))[1].requests == 1


async def test_stored_bytes_include_responses_and_replies(store_url: str, usage: UsageStore) -> None:
    if store_url == "sqlite://":
        pytest.skip("every connection has its own in-memory database")
    store = ResponseStore(store_url)
    await store.put(stored("resp_1", owner="me"))
    assert await usage.stored_bytes("someone else") == 0
    responses_only = await usage.stored_bytes("me")
    assert responses_only > 1000
    await ReplyStore(store.engine, days=1, max_bytes=10**6).put("me", "text", list(range(100)))
    assert await usage.stored_bytes("me") > responses_only
    await store.stop()
