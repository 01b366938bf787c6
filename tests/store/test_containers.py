from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from service.store.blobs import BlobError, DirectoryBlobs, whole
from service.store.containers import ContainerStore, StoredContainer, new_container_id
from service.store.database import open_database, prepare
from service.store.files import FileStore, FileTooLargeError
from tests.support.stored import Clock


async def parts(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@pytest.fixture
async def clock() -> Clock:
    return Clock()


@pytest.fixture
async def files(store_url: str, tmp_path: Path, clock: Clock) -> AsyncGenerator[FileStore, None]:
    engine = open_database(store_url)
    await prepare(engine)
    blobs = DirectoryBlobs(tmp_path / "files")
    yield FileStore(engine, blobs, max_file_bytes=100, max_owner_bytes=150, clock=clock)
    await engine.dispose()


@pytest.fixture
async def store(files: FileStore, clock: Clock) -> ContainerStore:
    return ContainerStore(files, keep_days=1, clock=clock)


def container(clock: Clock, owner: str | None = None) -> StoredContainer:
    owner = owner or f"owner-{time.monotonic_ns()}"
    return StoredContainer(new_container_id(), owner, "n\0", clock(), clock(), 20.0, 512)


async def test_containers_belong_to_their_owner(store: ContainerStore, clock: Clock) -> None:
    mine = container(clock)
    await store.put(mine)
    assert await store.get(mine.id, mine.owner) == mine
    assert await store.get(mine.id, "someone else") is None
    await store.change(mine.id, last_response_id="resp_1", inputs=[{"file_id": "f", "name": "a"}])
    changed = await store.get(mine.id, mine.owner)
    assert changed is not None
    assert (changed.last_response_id, changed.inputs) == ("resp_1", [{"file_id": "f", "name": "a"}])


async def test_idle_containers_and_those_of_dead_processes_are_expired(
    store: ContainerStore, clock: Clock
) -> None:
    mine = container(clock)
    dead = replace(container(clock, mine.owner), holder="/".join(["other-boot", "ns", "1", "1"]))
    ended = replace(container(clock, mine.owner), holder=mine.holder.rpartition("/")[0] + "/0")
    for one in (mine, dead, ended):
        await store.put(one)
    listed = {one.id: one.status for one in (await store.page(mine.owner, limit=9))[0]}
    assert listed == {mine.id: "running", dead.id: "running", ended.id: "expired"}
    clock.now += 21 * 60
    listed = {one.id: one.status for one in (await store.page(mine.owner, limit=9))[0]}
    assert set(listed.values()) == {"expired"}


async def test_pages_of_containers_and_files(store: ContainerStore, clock: Clock) -> None:
    mine = container(clock)
    others = [replace(container(clock, mine.owner), created_at=clock() + n) for n in range(3)]
    for one in others:
        await store.put(one)
    page, more = await store.page(mine.owner, limit=2)
    assert ([one.id for one in page], more) == ([others[2].id, others[1].id], True)
    page, more = await store.page(mine.owner, limit=2, after=page[-1].id)
    assert ([one.id for one in page], more) == ([others[0].id], False)
    with pytest.raises(KeyError):
        await store.page("someone else", limit=2, after=others[0].id)
    with pytest.raises(KeyError):
        await store.files_page(others[0].id, limit=2, after="cfile_x")


async def test_earlier_versions_of_a_file_stay_available(store: ContainerStore, clock: Clock) -> None:
    mine = container(clock)
    await store.put(mine)
    first = await store.save_file(mine, "/sandbox/a", parts(b"1"))
    second = await store.save_file(mine, "/sandbox/a", parts(b"22"))
    assert [file.id for file in (await store.files_page(mine.id, limit=9))[0]] == [second.id]
    old = await store.get_file(mine.id, first.id)
    assert old is not None
    assert await whole(store.content(old)) == b"1"
    assert await store.get_file("cntr_other", first.id) is None
    await store.delete_file(second)
    with pytest.raises(BlobError):
        await whole(store.content(second))


async def test_files_of_code_count_for_the_owners_limit(
    store: ContainerStore, files: FileStore, clock: Clock
) -> None:
    mine = container(clock)
    await store.put(mine)
    upload = await files.put(parts(bytes(80)), owner=mine.owner, filename="a", purpose="")
    await store.add_input(mine, "/inputs/a", 80, upload.sha256, upload.blob)  # shares its content
    await store.save_file(mine, "/sandbox/a", parts(bytes(60)))
    with pytest.raises(FileTooLargeError):
        await store.save_file(mine, "/sandbox/b", parts(bytes(20)))
    await store.delete(mine.id)
    assert await whole(files.content(upload)) == bytes(80)
    assert await files.blobs.names(older_than_s=-10) == [upload.blob]


async def test_old_containers_are_cleaned_with_their_files(
    store: ContainerStore, files: FileStore, clock: Clock
) -> None:
    mine = container(clock)
    await store.put(mine)
    await store.save_file(mine, "/sandbox/a", parts(b"1"))
    clock.now += 86_400
    await store.clean()
    assert await store.get(mine.id, mine.owner) is not None
    clock.now += 21 * 60
    await store.clean()
    assert await store.get(mine.id, mine.owner) is None
    assert await files.blobs.names(older_than_s=-10) == []
