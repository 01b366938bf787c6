from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from service.store.database import open_database, prepare
from service.store.replies import ReplyStore
from tests.support.stored import Clock


@pytest.fixture
async def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(clock: Clock) -> AsyncGenerator[ReplyStore, None]:
    engine = open_database("sqlite:///:memory:")
    await prepare(engine)
    yield ReplyStore(engine, days=1, max_bytes=2000, clock=clock)
    await engine.dispose()


async def test_finds_a_reply_by_owner_and_content(store: ReplyStore) -> None:
    await store.put("ann", "It is 42.", [1, 2, 3])
    assert await store.find("ann", {"It is 42.", "It is 43."}) == {"It is 42.": (1, 2, 3)}
    assert await store.find("ann", {"  It is 42.\n"}) == {"  It is 42.\n": (1, 2, 3)}
    assert await store.find("bob", {"It is 42."}) == {}
    assert await store.find("ann", ()) == {}


async def test_latest_of_two_equal_replies_wins(store: ReplyStore) -> None:
    await store.put("ann", "x", [1])
    await store.put("ann", "x", [2])
    assert await store.find("ann", {"x"}) == {"x": (2,)}


async def test_accepts_lone_surrogates(store: ReplyStore) -> None:
    await store.put("ann", "\ud83d", [1])
    assert await store.find("ann", {"\ud83d"}) == {"\ud83d": (1,)}


async def test_replies_expire(store: ReplyStore, clock: Clock) -> None:
    await store.put("ann", "x", [1])
    clock.now += 86_401
    assert await store.find("ann", {"x"}) == {}
    await store.clean()
    clock.now -= 86_401
    assert await store.find("ann", {"x"}) == {}


async def test_oldest_replies_are_removed_above_the_size_limit(store: ReplyStore, clock: Clock) -> None:
    for number in range(10):
        await store.put("ann", str(number), [number])
        clock.now += 1
    await store.clean()
    found = await store.find("ann", {str(number) for number in range(10)})
    assert 0 < len(found) < 10
    assert set(found) == {str(number) for number in range(10 - len(found), 10)}
