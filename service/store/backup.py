"""Back-ups of an SQLite store with the contents of its files, made while servers write to it.

A back-up is a directory with ``store.db``, the contents in ``files`` and ``backup.json``. Contents are copied
before and after the database, so that every file of the database has its content.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable
from contextlib import aclosing, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from service.store.blobs import BlobError, BlobStore, DirectoryBlobs
from service.store.database import StoreError
from service.store.files import blob_of

DATABASE: Final = "store.db"
FILES: Final = "files"
MANIFEST: Final = "backup.json"
_FORMAT: Final = 1
_BUSY_S: Final = 10.0
_SUFFIXES: Final = ("-wal", "-shm")


@dataclass(frozen=True, slots=True)
class BackupManifest:
    """Description of a back-up; the content of ``backup.json``."""

    format: int
    version: str
    """Version of the program that made it."""
    created_at: int
    """Unix time."""
    sha256: str
    """Digest of the database."""
    responses: int
    files: int
    """Contents of files, including those that code wrote."""


async def back_up(store_url: str, blobs: BlobStore, target: Path, *, version: str) -> BackupManifest:
    """Copy a store to the directory ``target``, which must be empty or missing.

    Args:
        store_url: ``sqlite:///PATH``.
        blobs: contents of its files.
        target: directory of the back-up.
        version: version of this program.

    Raises:
        StoreError: the store is not an SQLite file, or ``target`` is not empty.
        BlobError: a content can't be copied.
    """
    source = sqlite_path(store_url)
    if not source.is_file():
        raise StoreError(f"there is no store at {source}")
    _create(target)
    copies = DirectoryBlobs(target / FILES)
    copied: set[str] = set()
    await _copy(blobs, copies, _contents(source), copied)
    await asyncio.to_thread(_snapshot, source, target / DATABASE)
    # Files that were added in between are copied now. Files that were deleted in between are left out.
    lost = await _copy(blobs, copies, _contents(target / DATABASE), copied)
    _forget(target / DATABASE, lost)
    for name in copied - set(_contents(target / DATABASE)):
        await copies.delete(name)
    with closing(sqlite3.connect(target / DATABASE)) as connection:
        responses = connection.execute("SELECT count(*) FROM responses").fetchone()[0]
    count = len(set(_contents(target / DATABASE)))
    digest = await asyncio.to_thread(_sha256, target / DATABASE)
    manifest = BackupManifest(_FORMAT, version, int(time.time()), digest, responses, count)
    (target / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    return manifest


async def restore(source: Path, store_url: str, blobs: BlobStore, *, replace: bool = False) -> BackupManifest:
    """Copy a back-up to a store. No server may use the store meanwhile.

    Args:
        source: directory of the back-up.
        store_url: ``sqlite:///PATH``.
        blobs: contents of its files.
        replace: replace an existing store.

    Raises:
        StoreError: the back-up is incomplete or damaged, or there is a store and ``replace`` is False.
        BlobError: a content can't be copied.
    """
    target = sqlite_path(store_url)
    manifest = read_manifest(source)
    if await asyncio.to_thread(_sha256, source / DATABASE) != manifest.sha256:
        raise StoreError(f"{source / DATABASE} is damaged: it does not match {MANIFEST}")
    if target.exists() and not replace:
        raise StoreError(f"there is a store at {target} already: move it away, or replace it with --replace")
    missing = await _copy(DirectoryBlobs(source / FILES), blobs, _contents(source / DATABASE), set())
    if missing:
        raise StoreError(f"{source} is incomplete: {len(missing)} contents are missing")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + ".restoring")
    await asyncio.to_thread(_snapshot, source / DATABASE, unfinished)
    for suffix in _SUFFIXES:
        target.with_name(target.name + suffix).unlink(missing_ok=True)
    unfinished.replace(target)
    return manifest


def read_manifest(source: Path) -> BackupManifest:
    """Return the description of a back-up.

    Raises:
        StoreError: there is none, or this version can't read it.
    """
    try:
        fields = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
        if fields["format"] > _FORMAT:
            raise StoreError(f"{source} was made by a newer version ({fields['version']})")
        return BackupManifest(**fields)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{source} is not a complete back-up: {MANIFEST} can't be read") from None


def sqlite_path(store_url: str) -> Path:
    """Return the file of an SQLite store.

    Raises:
        StoreError: the store is in Postgres or in memory.
    """
    path = store_url.removeprefix("sqlite:///")
    if path == store_url or path in ("", ":memory:"):
        raise StoreError("this command is for SQLite files; for Postgres use pg_dump, see the upgrade guide")
    return Path(path)


def _create(target: Path) -> None:
    if target.exists() and any(target.iterdir()):
        raise StoreError(f"{target} is not empty: choose another directory")
    target.mkdir(mode=0o700, parents=True, exist_ok=True)


async def _copy(source: BlobStore, target: BlobStore, names: Iterable[str], copied: set[str]) -> set[str]:
    """Copy contents that are not in ``copied`` and add them to it; return those that do not exist."""
    missing = set()
    for name in names:
        if name in copied:
            continue
        try:
            async with aclosing(source.read(name)) as chunks:
                first = await anext(chunks, b"")
                async with target.write(name) as writer:
                    await writer.write(first)
                    async for chunk in chunks:
                        await writer.write(chunk)
        except BlobError as error:
            if not _is_missing(error):
                raise
            missing.add(name)
        else:
            copied.add(name)
    return missing


def _is_missing(error: BlobError) -> bool:
    return isinstance(error.__cause__, FileNotFoundError)


def _snapshot(source: Path, target: Path) -> None:
    os.close(os.open(target, os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o600))
    with (
        closing(sqlite3.connect(source, timeout=_BUSY_S)) as reading,
        closing(sqlite3.connect(target)) as writing,
    ):
        reading.backup(writing)  # in one step: with a write-ahead log, others can write meanwhile
        writing.execute("PRAGMA journal_mode = DELETE")  # one file; a server turns the log on again
        if writing.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            raise StoreError(f"the copy of {source} is damaged: check the disk")


def _contents(database: Path) -> list[str]:
    """Return the names of all contents that the rows of a database refer to."""
    with closing(sqlite3.connect(database, timeout=_BUSY_S)) as connection:
        uploads = [blob_of(row[0]) for row in connection.execute("SELECT id FROM files")]
        query = "SELECT blob FROM container_files WHERE source = 'assistant'"
        return [*uploads, *(row[0] for row in connection.execute(query))]


def _forget(database: Path, names: Iterable[str]) -> None:
    """Delete the rows of files that were deleted during the back-up."""
    with closing(sqlite3.connect(database)) as connection, connection:
        for name in names:
            connection.execute("DELETE FROM files WHERE id = ?", (f"file-{name}",))
            connection.execute("DELETE FROM container_files WHERE blob = ?", (name,))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
