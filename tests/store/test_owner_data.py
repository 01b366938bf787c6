"""Deletion of all data of one key."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

from service.store.blobs import DirectoryBlobs
from service.store.containers import ContainerStore, StoredContainer, new_container_id
from service.store.files import FileStore
from service.store.owner_data import count_owner_data, delete_owner_data
from service.store.replies import ReplyStore
from service.store.responses import ResponseStore
from service.store.tables import metadata
from service.store.usage import Consumption, UsageStore
from tests.support.stored import stored


async def one(content: bytes) -> AsyncIterator[bytes]:
    yield content


@pytest.fixture
async def responses(store_url: str) -> AsyncGenerator[ResponseStore, None]:
    store = ResponseStore(store_url)
    await store.start()
    yield store
    await store.stop()


@pytest.fixture
def files(responses: ResponseStore, tmp_path: Path) -> FileStore:
    blobs = DirectoryBlobs(tmp_path / "blobs")
    return FileStore(responses.engine, blobs, max_file_bytes=100, max_owner_bytes=1000)


async def fill(responses: ResponseStore, files: FileStore, owner: str) -> None:
    await responses.put(stored(f"resp_{owner}", owner=owner, expires_at=10e10))
    await responses.add_events(f"resp_{owner}", [{"sequence_number": 0}])
    await ReplyStore(files.engine, days=1, max_bytes=10**6).put(owner, "text", [1])
    await UsageStore(files.engine, days=1).add(owner, "m", Consumption(1))
    upload = await files.put(one(b"upload"), owner=owner, filename="a", purpose="")
    container = StoredContainer(new_container_id(), owner, "c", 1.0, 1.0, 20.0, 512)
    store = ContainerStore(files, keep_days=1)
    await store.put(container)
    await store.add_input(container, "/inputs/a", 6, upload.sha256, upload.blob)
    await store.save_file(container, "/sandbox/b", one(b"written"))


async def test_deletes_rows_and_contents_of_one_owner_only(
    responses: ResponseStore, files: FileStore
) -> None:
    for owner in ("mine", "theirs"):
        await delete_owner_data(files, owner)
        await fill(responses, files, owner)
    counts = await count_owner_data(files, "mine")
    assert counts == {
        "responses": 1,
        "chat_replies": 1,
        "files": 1,
        "containers": 1,
        "container_files": 2,
        "usage_hours": 1,
    }
    assert len(await files.blobs.names(older_than_s=-10)) == 4
    assert await delete_owner_data(files, "mine") == counts
    assert set((await count_owner_data(files, "mine")).values()) == {0}
    assert await count_owner_data(files, "theirs") == counts
    assert await responses.events_after("resp_mine", -1) == []
    assert len(await files.blobs.names(older_than_s=-10)) == 2
    await delete_owner_data(files, "theirs")
    assert await files.blobs.names(older_than_s=-10) == []


def test_every_table_belongs_to_an_owner_or_to_a_row_that_does() -> None:
    for table in metadata.sorted_tables:
        if "owner" not in table.c:
            [key] = table.foreign_keys
            assert key.ondelete == "CASCADE"
            assert "owner" in key.column.table.c
