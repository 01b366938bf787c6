from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from sqlalchemy import delete, func, select

from service.store.database import StoreError
from service.store.responses import MAX_TURNS, ResponseStore
from service.store.tables import events, responses
from tests.support.stored import Clock, stored


@pytest.fixture
async def store(store_url: str) -> AsyncGenerator[ResponseStore, None]:
    store = ResponseStore(store_url, clock=Clock())
    await store.start()
    yield store
    async with store.engine.begin() as connection:
        await connection.execute(delete(responses))
    await store.stop()


def numbered(*numbers: int) -> list[dict[str, object]]:
    return [{"type": "x", "sequence_number": number, "delta": "\ud800\0é"} for number in numbers]


async def test_response_round_trip(store: ResponseStore) -> None:
    odd = stored("resp_1", text="NUL \0, half a pair \ud800, 日本", body={"a": ["\0\udfff", None, 1.5]})
    await store.put(odd)
    assert await store.get("resp_1", "me") == odd


async def test_only_the_owner_can_read_or_delete(store: ResponseStore) -> None:
    await store.put(stored("resp_1"))
    assert await store.get("resp_1", "you") is None
    assert await store.conversation("resp_1", "you") == []
    assert not await store.delete("resp_1", "you")
    assert await store.delete("resp_1", "me")
    assert await store.get("resp_1", "me") is None
    assert not await store.delete("resp_1", "me")


async def test_expired_response_is_hidden_before_removal(store: ResponseStore) -> None:
    await store.put(stored("resp_1", expires_at=999_999.0))
    assert await store.get("resp_1", "me") is None


async def test_conversation_is_in_order(store: ResponseStore) -> None:
    for number in range(4):
        previous = f"resp_{number - 1}" if number else None
        await store.put(stored(f"resp_{number}", previous_id=previous))
    turns = await store.conversation("resp_3", "me")
    assert [turn.id for turn in turns] == ["resp_0", "resp_1", "resp_2", "resp_3"]
    await store.delete("resp_1", "me")
    turns = await store.conversation("resp_3", "me")
    assert [turn.id for turn in turns] == ["resp_2", "resp_3"]
    assert turns[0].previous_id == "resp_1"


async def test_conversation_stops_at_another_owner(store: ResponseStore) -> None:
    await store.put(stored("resp_0", owner="you"))
    await store.put(stored("resp_1", previous_id="resp_0"))
    assert [turn.id for turn in await store.conversation("resp_1", "me")] == ["resp_1"]


async def test_circular_conversation_ends(store: ResponseStore) -> None:
    await store.put(stored("resp_0", previous_id="resp_0"))
    assert len(await store.conversation("resp_0", "me")) == MAX_TURNS


async def test_response_can_be_ended_only_once(store: ResponseStore) -> None:
    await store.put(stored("resp_1", status="queued", background=True))
    assert await store.change("resp_1", status="in_progress", body={"n": 1})
    assert await store.change("resp_1", status="cancelled", body={"n": 2}, text="half")
    assert not await store.change("resp_1", status="completed", body={"n": 3})
    ended = await store.get("resp_1", "me")
    assert ended is not None
    assert (ended.status, ended.body, ended.text, ended.is_running) == ("cancelled", {"n": 2}, "half", False)
    assert not await store.change("resp_9", status="completed", body={})


async def test_reads_events_after_a_sequence_number(store: ResponseStore) -> None:
    await store.put(stored("resp_1", status="in_progress"))
    await store.add_events("resp_1", numbered(0, 1, 2))
    await store.add_events("resp_1", [])
    await store.add_events("resp_1", numbered(3, 4))
    assert await store.events_after("resp_1", -1) == numbered(0, 1, 2, 3, 4)
    assert await store.events_after("resp_1", 1) == numbered(2, 3, 4)
    assert await store.events_after("resp_1", 4) == []
    assert await store.last_event("resp_1") == numbered(4)[0]
    assert await store.last_event("resp_2") is None


async def test_events_are_deleted_with_their_response(store: ResponseStore) -> None:
    await store.put(stored("resp_1", status="in_progress"))
    await store.add_events("resp_1", numbered(0))
    await store.delete("resp_1", "me")
    await store.add_events("resp_1", numbered(1))
    async with store.engine.connect() as connection:
        assert (await connection.execute(select(func.count()).select_from(events))).scalar() == 0


async def test_file_is_persistent_and_private(tmp_path: Path) -> None:
    path = tmp_path / "state" / "responses.db"
    for _ in range(2):
        store = ResponseStore(f"sqlite:///{path}", clock=Clock())
        await store.start()
        if await store.get("resp_1", "me") is None:
            await store.put(stored("resp_1"))
        await store.stop()
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://x", "postgresql://USER"),
        ("nonsense", "sqlite:///PATH"),
    ],
)
def test_rejects_invalid_url(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        ResponseStore(url)


async def test_unreachable_database_error_hides_the_password() -> None:
    store = ResponseStore("postgresql://me:secret@127.0.0.1:1/x")
    with pytest.raises(StoreError, match="can't be opened") as caught:
        await store.start()
    assert "secret" not in str(caught.value)
    await store.stop()


async def test_reports_a_directory_that_cannot_be_created() -> None:
    store = ResponseStore("sqlite:////proc/nope/x.db")
    with pytest.raises(StoreError, match="can't be opened"):
        await store.start()
    await store.stop()


def test_nothing_is_created_before_start(tmp_path: Path) -> None:
    asyncio.run(ResponseStore(f"sqlite:///{tmp_path / 'new' / 'responses.db'}").stop())
    assert list(tmp_path.iterdir()) == []


async def test_rejects_a_file_that_is_not_a_database(tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    path.write_bytes(b"no database at all" * 100)
    store = ResponseStore(f"sqlite:///{path}")
    with pytest.raises(StoreError, match="not a database"):
        await store.start()
    await store.stop()
