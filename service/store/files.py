"""Uploaded files: their metadata in the database, their contents in a `BlobStore`.

Every method is restricted to the owner. A content is written before its row and deleted after it, so a crash
leaves at most a content without a row, which `FileStore.clean` removes.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

import structlog
from sqlalchemy import ColumnElement, and_, delete, func, insert, or_, select, text, union_all, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from service.store.blobs import BlobError, BlobStore
from service.store.tables import container_files, files
from service.store.usage import stored_bytes

ORPHAN_AGE_S: Final = 3600.0
"""Age above which a content without a row was left by a crash, and not by an upload in progress."""
FileSource = Literal["upload", "container"]
"""Source of a content: a client, or code in a container."""
_log = structlog.get_logger(__name__)


class FileTooLargeError(Exception):
    """A file exceeds a limit: that of one file, or that of all files of its owner."""

    def __init__(self, limit: int, *, of_owner: bool) -> None:
        super().__init__(f"more than {limit} bytes")
        self.limit = limit
        self.of_owner = of_owner


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One uploaded file. Times are Unix seconds."""

    id: str
    owner: str
    filename: str
    """Name that the client sent. It is data: no path is ever built from it."""
    purpose: str
    bytes: int
    sha256: str
    created_at: float
    expires_at: float | None
    listed: bool = True
    """False for a file that was sent inside a request instead of being uploaded."""

    @property
    def blob(self) -> str:
        return blob_of(self.id)


_columns: Final = [files.c[name] for name in StoredFile.__dataclass_fields__]


def new_file_id() -> str:
    """Return a new id that can't be guessed."""
    return f"file-{secrets.token_hex(16)}"


def blob_of(file_id: str) -> str:
    """Return the name of the blob with the file's content."""
    return file_id.removeprefix("file-")


@dataclass(slots=True)
class FileCounts:
    """Counts of a store of files since the start of the process."""

    written: dict[FileSource, int] = field(default_factory=lambda: {"upload": 0, "container": 0})
    """Stored files by source."""
    written_bytes: dict[FileSource, int] = field(default_factory=lambda: {"upload": 0, "container": 0})
    read_bytes: int = 0
    rejected: int = 0
    """Files above a limit of size."""


class FileStore:
    """Files in the store's database.

    Args:
        engine: the database, with an up-to-date schema.
        blobs: contents of the files.
        max_file_bytes: limit of one file.
        max_owner_bytes: limit of all files of one owner together, including files of containers.
        quota_of: limit of everything that is stored for an owner; see `stored_bytes`.
        keep_days: days after which a file is deleted; None to keep those without an expiry.
        clock: Unix time.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        blobs: BlobStore,
        *,
        max_file_bytes: int,
        max_owner_bytes: int,
        quota_of: Callable[[str], int | None] = lambda _: None,
        keep_days: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.engine = engine
        self.blobs = blobs
        self.max_file_bytes = max_file_bytes
        self.max_owner_bytes = max_owner_bytes
        self._quota_of = quota_of
        self._keep_s = None if keep_days is None else keep_days * 86_400
        self._clock = clock
        self.counts = FileCounts()

    async def put(
        self,
        content: AsyncIterator[bytes],
        *,
        owner: str,
        filename: str,
        purpose: str,
        expires_after_s: float | None = None,
        listed: bool = True,
    ) -> StoredFile:
        """Store ``content``, as it arrives, as a new file.

        Raises:
            FileTooLargeError: it exceeds a limit. Nothing is stored.
            BlobError: the content could not be written.
        """
        file_id = new_file_id()
        size, digest = await self.write(blob_of(file_id), content, owner, "upload")
        now = self._clock()
        file = StoredFile(
            id=file_id,
            owner=owner,
            filename=filename,
            purpose=purpose,
            bytes=size,
            sha256=digest,
            created_at=now,
            expires_at=None if expires_after_s is None else now + expires_after_s,
            listed=listed,
        )
        try:
            async with self.engine.begin() as connection:
                await self.lock(connection, owner)
                await connection.execute(insert(files).values(**asdict(file)))
                await self.check_room(connection, owner)  # two uploads at a time
        except BaseException:
            await self.blobs.delete(file.blob)
            raise
        return file

    async def describe(self, file: StoredFile, *, purpose: str, expires_after_s: float | None) -> StoredFile:
        """Set the fields that a form may contain after the content, and list the file from now on."""
        expires_at = None if expires_after_s is None else file.created_at + expires_after_s
        values = {"purpose": purpose, "expires_at": expires_at, "listed": True}
        async with self.engine.begin() as connection:
            await connection.execute(update(files).where(files.c.id == file.id).values(**values))
        return replace(file, purpose=purpose, expires_at=expires_at, listed=True)

    async def write(
        self, blob: str, content: AsyncIterator[bytes], owner: str, source: FileSource
    ) -> tuple[int, str]:
        """Write a content within the limits and return its size and SHA-256. Raises as `put`."""
        async with self.engine.connect() as connection:
            room, limit = await self._room(connection, owner)
        size, digest = 0, hashlib.sha256()
        try:
            async with self.blobs.write(blob) as writer:
                async for chunk in content:
                    size += len(chunk)
                    if size > self.max_file_bytes:
                        raise FileTooLargeError(self.max_file_bytes, of_owner=False)
                    if size > room:
                        raise FileTooLargeError(limit, of_owner=True)
                    digest.update(chunk)
                    await writer.write(chunk)
        except FileTooLargeError:
            self.counts.rejected += 1
            raise
        self.counts.written[source] += 1
        self.counts.written_bytes[source] += size
        return size, digest.hexdigest()

    async def read(self, blob: str) -> AsyncGenerator[bytes, None]:
        """Yield the content ``blob``.

        Raises:
            BlobError: it can't be read.
        """
        async with aclosing(self.blobs.read(blob)) as chunks:
            async for chunk in chunks:
                self.counts.read_bytes += len(chunk)
                yield chunk

    async def lock(self, connection: AsyncConnection, owner: str) -> None:
        """Let one transaction at a time add files of ``owner``. SQLite has one writer in any case."""
        if connection.dialect.name == "postgresql":
            key = int.from_bytes(hashlib.sha256(owner.encode()).digest()[:8], "big", signed=True)
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})

    async def check_room(self, connection: AsyncConnection, owner: str) -> None:
        """Check the limits on all files of ``owner`` after a file was added.

        Raises:
            FileTooLargeError: they exceed one.
        """
        room, limit = await self._room(connection, owner)
        if room < 0:
            raise FileTooLargeError(limit, of_owner=True)

    async def _room(self, connection: AsyncConnection, owner: str) -> tuple[int, int]:
        """Return the bytes that ``owner`` may still add, and the limit that allows them."""
        limit = self.max_owner_bytes
        room = limit - await self._used(connection, owner)
        quota = self._quota_of(owner)
        if quota is None or (left := quota - await stored_bytes(connection, owner)) >= room:
            return room, limit
        return left, quota

    async def _used(self, connection: AsyncConnection, owner: str) -> int:
        """Return the bytes of all files of ``owner``."""
        sizes = union_all(
            select(files.c.bytes).where(files.c.owner == owner),
            select(container_files.c.bytes).where(
                container_files.c.owner == owner, container_files.c.source == "assistant"
            ),
        ).subquery()
        return int((await connection.execute(select(func.coalesce(func.sum(sizes.c.bytes), 0)))).scalar_one())

    async def get(self, file_id: str, owner: str) -> StoredFile | None:
        """Return the file if it belongs to ``owner`` and has not expired."""
        return next(iter(await self.get_all([file_id], owner)), None)

    async def get_all(self, file_ids: Collection[str], owner: str) -> list[StoredFile]:
        """Return those of ``file_ids`` that belong to ``owner`` and have not expired, in any order."""
        query = select(*_columns).where(files.c.id.in_(file_ids), *self._visible(owner))
        async with self.engine.connect() as connection:
            return [StoredFile(**row) for row in (await connection.execute(query)).mappings()]

    async def page(
        self,
        owner: str,
        *,
        limit: int,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
        purpose: str | None = None,
    ) -> tuple[list[StoredFile], bool]:
        """Return one page of the files by time of creation, and whether there are more.

        Raises:
            KeyError: the file ``after`` does not exist.
        """
        where: list[ColumnElement[bool]] = [*self._visible(owner), files.c.listed]
        if purpose is not None:
            where.append(files.c.purpose == purpose)
        if after is not None:
            last = await self.get(after, owner)
            if last is None:
                raise KeyError(after)
            where.append(after_row(files, last.created_at, last.id, order))
        keys = (files.c.created_at, files.c.id)
        ordered = keys if order == "asc" else tuple(key.desc() for key in keys)
        query = select(*_columns).where(*where).order_by(*ordered).limit(limit + 1)
        async with self.engine.connect() as connection:
            found = [StoredFile(**row) for row in (await connection.execute(query)).mappings()]
        return found[:limit], len(found) > limit

    async def content(self, file: StoredFile) -> AsyncGenerator[bytes, None]:
        """Yield the file's content.

        Raises:
            BlobError: it can't be read.
        """
        async with aclosing(self.read(file.blob)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def delete(self, file_id: str, owner: str) -> bool:
        """Delete the file; return False if it does not exist."""
        file = await self.get(file_id, owner)
        if file is None:
            return False
        async with self.engine.begin() as connection:
            deleted = (await connection.execute(delete(files).where(files.c.id == file_id))).rowcount
        await self.drop_blobs([file.blob])
        return bool(deleted)

    async def clean(self) -> None:
        """Delete files that have expired or are too old."""
        is_over = files.c.expires_at <= self._clock()
        if self._keep_s is not None:
            is_over = or_(is_over, files.c.created_at <= self._clock() - self._keep_s)
        expired = select(files.c.id).where(is_over)
        async with self.engine.begin() as connection:
            ids = list((await connection.execute(expired)).scalars())
            await connection.execute(delete(files).where(files.c.id.in_(ids)))
        await self.drop_blobs([blob_of(file_id) for file_id in ids])

    async def remove_orphans(self) -> int:
        """Delete contents that a crash left without a row; return their number."""
        names = set(await self.blobs.names(older_than_s=ORPHAN_AGE_S))
        if not names:
            return 0
        async with self.engine.connect() as connection:
            known = {blob_of(row) for row in (await connection.execute(select(files.c.id))).scalars()}
            known |= set((await connection.execute(select(container_files.c.blob))).scalars())
        await self.drop_blobs(names - known)
        return len(names - known)

    async def drop_blobs(self, names: Collection[str]) -> None:
        """Delete contents whose rows are gone. A failure leaves them to `remove_orphans`."""
        for name in names:
            try:
                await self.blobs.delete(name)
            except BlobError as error:
                _log.warning("file_content_not_deleted", error=str(error))

    def _visible(self, owner: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
        return files.c.owner == owner, or_(files.c.expires_at.is_(None), files.c.expires_at > self._clock())


def after_row(table: Any, created_at: float, row_id: str, order: str) -> ColumnElement[bool]:
    """Return the condition that a row of ``table`` comes after the given one in ``order``."""
    created, ids = table.c.created_at, table.c.id
    if order == "asc":
        return or_(created > created_at, and_(created == created_at, ids > row_id))
    return or_(created < created_at, and_(created == created_at, ids < row_id))
