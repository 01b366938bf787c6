from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

from service.store.blobs import BlobError, BlobStore, DirectoryBlobs, open_blobs, whole
from service.store.database import open_database, prepare
from service.store.files import FileStore, FileTooLargeError
from tests.support.stored import Clock


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def parts(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


OWNER = "ann"


@pytest.fixture(autouse=True)
def own_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own owner, because the tests share one Postgres database."""
    monkeypatch.setitem(globals(), "OWNER", secrets.token_hex(8))


@pytest.fixture
async def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["directory", "fsspec"])
def blob_store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "directory":
        return open_blobs(str(tmp_path / "files"))
    pytest.importorskip("fsspec")
    return open_blobs(f"memory://{tmp_path}")


@pytest.fixture
async def store(store_url: str, blob_store: BlobStore, clock: Clock) -> AsyncGenerator[FileStore, None]:
    engine = open_database(store_url)
    await prepare(engine)
    yield FileStore(engine, blob_store, max_file_bytes=100, max_owner_bytes=150, clock=clock)
    await engine.dispose()


async def test_stores_and_returns_a_file(store: FileStore) -> None:
    file = await store.put(parts(b"ab", b"c"), owner=OWNER, filename="a\0\ud800.txt", purpose="user_data")
    assert (file.bytes, file.sha256[:8]) == (3, "ba7816bf")
    assert await store.get(file.id, OWNER) == file
    assert await store.get(file.id, "someone else") is None
    assert await whole(store.content(file)) == b"abc"
    assert not await store.delete(file.id, "someone else")
    assert await store.delete(file.id, OWNER)
    assert not await store.delete(file.id, OWNER)
    assert await store.blobs.names(older_than_s=-10) == []


async def test_files_expire(store: FileStore, clock: Clock) -> None:
    file = await store.put(parts(b"1"), owner=OWNER, filename="a", purpose="", expires_after_s=60)
    clock.now += 61
    assert await store.get(file.id, OWNER) is None
    await store.clean()
    assert await store.blobs.names(older_than_s=-10) == []
    clock.now -= 61
    assert await store.get(file.id, OWNER) is None


async def test_concurrent_uploads_stay_within_the_limit(store: FileStore) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        yield bytes(40)
        await asyncio.sleep(0.05)
        yield bytes(40)

    uploads = [store.put(slowly(), owner=OWNER, filename="a", purpose="") for _ in range(3)]
    results = await asyncio.gather(*uploads, return_exceptions=True)
    failed = [result for result in results if isinstance(result, FileTooLargeError)]
    assert len(failed) == 2
    assert all(error.of_owner for error in failed)
    assert len(await store.blobs.names(older_than_s=-10)) == 1
    await store.put(parts(bytes(70)), owner=OWNER, filename="b", purpose="")


async def test_failed_upload_leaves_nothing(store: FileStore) -> None:
    async def cut_off() -> AsyncIterator[bytes]:
        yield b"1"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await store.put(cut_off(), owner=OWNER, filename="a", purpose="")
    assert await store.blobs.names(older_than_s=-10) == []
    assert (await store.page(OWNER, limit=10))[0] == []


async def test_contents_without_a_row_are_removed_once_they_are_old(tmp_path: Path) -> None:
    engine = open_database("sqlite://")
    await prepare(engine)
    store = FileStore(engine, DirectoryBlobs(tmp_path), max_file_bytes=100, max_owner_bytes=150)
    kept = await store.put(parts(b"1"), owner="o", filename="a", purpose="")
    async with store.blobs.write("0" * 32) as writer:
        await writer.write(b"x")
    (tmp_path / "00" / ("1" * 32 + ".part")).write_bytes(b"x")
    assert await store.remove_orphans() == 0
    for path in files_in(tmp_path):
        os.utime(path, (1, 1))
    assert await store.remove_orphans() == 1
    assert [path.name for path in files_in(tmp_path)] == [kept.blob]
    await engine.dispose()


async def test_missing_content_is_a_blob_error(store: FileStore) -> None:
    file = await store.put(parts(b"1"), owner=OWNER, filename="a", purpose="")
    await store.blobs.delete(file.blob)
    with pytest.raises(BlobError):
        await whole(store.content(file))
    await store.delete(file.id, OWNER)


@pytest.mark.parametrize("name", ["../" + "0" * 29, "0" * 31, "A" * 32, ""])
async def test_only_names_of_the_server_become_paths(blob_store: BlobStore, name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a blob"):
        await whole(blob_store.read(name))


def test_unknown_scheme_is_rejected() -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(ValueError, match="files_url"):
        open_blobs("nothing://x")


async def test_old_files_are_deleted_if_their_days_are_limited(store: FileStore, clock: Clock) -> None:
    file = await store.put(parts(b"1"), owner=OWNER, filename="a", purpose="")
    strict = FileStore(
        store.engine, store.blobs, max_file_bytes=100, max_owner_bytes=150, keep_days=2, clock=clock
    )
    clock.now += 2 * 86_400 - 1
    await strict.clean()
    assert await store.get(file.id, OWNER) == file
    clock.now += 1
    await store.clean()
    assert await store.get(file.id, OWNER) == file
    await strict.clean()
    assert await store.get(file.id, OWNER) is None
    assert await store.blobs.names(older_than_s=-10) == []


async def test_quota_of_everything_that_is_stored_limits_files_too(store: FileStore, clock: Clock) -> None:
    def small(owner: str) -> int | None:
        return 10 if owner == OWNER else None

    limited = FileStore(
        store.engine, store.blobs, max_file_bytes=100, max_owner_bytes=150, quota_of=small, clock=clock
    )
    file = await limited.put(parts(b"1" * 10), owner=OWNER, filename="a", purpose="")
    with pytest.raises(FileTooLargeError) as caught:
        await limited.put(parts(b"1"), owner=OWNER, filename="a", purpose="")
    assert (caught.value.limit, caught.value.of_owner) == (10, True)
    other = await limited.put(parts(b"1" * 20), owner=f"not {OWNER}", filename="a", purpose="")
    for one in (file, other):
        assert await limited.delete(one.id, one.owner)
