"""Back-ups that are made while requests write, and their restore."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from service.store.backup import back_up, restore
from service.store.blobs import DirectoryBlobs, whole
from service.store.database import StoreError
from service.store.files import FileStore
from service.store.responses import ResponseStore
from tests.support.stored import stored


async def one(content: bytes) -> AsyncIterator[bytes]:
    yield content


class Site:
    """A store with its files, as a server has them."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder / 'responses.db'}"
        self.blobs = DirectoryBlobs(folder / "files")
        self.responses = ResponseStore(self.url)
        self.files = FileStore(self.responses.engine, self.blobs, max_file_bytes=10**6, max_owner_bytes=10**9)

    async def write(self, number: int) -> None:
        """Store a response and a file, and delete every third file again."""
        await self.responses.put(stored(f"resp_{number}", expires_at=10e10))
        file = await self.files.put(one(b"%d" % number * 500), owner="me", filename="a", purpose="")
        if number % 3 == 0:
            await self.files.delete(file.id, "me")


async def test_backup_under_writes_is_consistent_and_restores(tmp_path: Path) -> None:
    site = Site(tmp_path / "here")
    await site.responses.start()
    for number in range(5):
        await site.write(number)
    is_over = False

    async def writes() -> int:
        number = 5
        while not is_over:
            await site.write(number)
            number += 1
        return number

    writer = asyncio.create_task(writes())
    manifests = [
        await back_up(site.url, site.blobs, tmp_path / f"backup-{count}", version="1") for count in range(3)
    ]
    is_over = True
    assert await writer > 8
    await site.responses.stop()
    assert manifests[0].responses >= 5
    for count, manifest in enumerate(manifests):
        there = Site(tmp_path / f"there-{count}")
        await restore(tmp_path / f"backup-{count}", there.url, there.blobs)
        await there.responses.start()
        page, _ = await there.files.page("me", limit=10_000)
        assert len(page) == manifest.files
        for file in page:
            assert len(await whole(there.files.content(file))) == file.bytes
        assert len(await there.blobs.names(older_than_s=-10)) == manifest.files
        newest = await there.responses.get(f"resp_{manifest.responses - 1}", "me")
        assert newest is not None
        await there.write(100_000)
        await there.responses.stop()


async def test_content_that_vanishes_during_the_backup_is_left_out(tmp_path: Path) -> None:
    site = Site(tmp_path / "here")
    await site.responses.start()
    await site.write(1)
    lost = await site.files.put(one(b"x"), owner="me", filename="lost", purpose="")
    await site.blobs.delete(lost.blob)
    manifest = await back_up(site.url, site.blobs, tmp_path / "backup", version="1")
    await site.responses.stop()
    assert manifest.files == 1
    there = Site(tmp_path / "there")
    await restore(tmp_path / "backup", there.url, there.blobs)


async def test_restore_rejects_damage_and_an_existing_store(tmp_path: Path) -> None:
    site = Site(tmp_path / "here")
    await site.responses.start()
    await site.write(1)
    backup = tmp_path / "backup"
    await back_up(site.url, site.blobs, backup, version="1")
    with pytest.raises(StoreError, match="not empty"):
        await back_up(site.url, site.blobs, backup, version="1")
    await site.write(2)
    await site.responses.stop()
    with pytest.raises(StoreError, match="already"):
        await restore(backup, site.url, site.blobs)
    assert (await restore(backup, site.url, site.blobs, replace=True)).responses == 1
    with closing(sqlite3.connect(tmp_path / "here" / "responses.db")) as connection:
        assert connection.execute("SELECT count(*) FROM responses").fetchone() == (1,)
    there = Site(tmp_path / "there")
    for blob in (backup / "files").glob("*/*"):
        blob.unlink()
    with pytest.raises(StoreError, match="incomplete: 1"):
        await restore(backup, there.url, there.blobs)
    with (backup / "store.db").open("ab") as database:
        database.write(b"x")
    with pytest.raises(StoreError, match="damaged"):
        await restore(backup, there.url, there.blobs)
    manifest = json.loads((backup / "backup.json").read_text())
    (backup / "backup.json").write_text(json.dumps({**manifest, "format": 2, "version": "9"}))
    with pytest.raises(StoreError, match="newer version"):
        await restore(backup, there.url, there.blobs)
    (backup / "backup.json").unlink()
    with pytest.raises(StoreError, match="not a complete back-up"):
        await restore(backup, there.url, there.blobs)
    assert not (tmp_path / "there" / "responses.db").exists()


@pytest.mark.parametrize("url", ["sqlite://", "postgresql://u:p@h/n"])
async def test_other_databases_are_rejected_with_a_hint(url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="pg_dump"):
        await back_up(url, DirectoryBlobs(tmp_path), tmp_path / "backup", version="1")


async def test_missing_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store"):
        await back_up(f"sqlite:///{tmp_path / 'x.db'}", DirectoryBlobs(tmp_path), tmp_path / "b", version="1")
