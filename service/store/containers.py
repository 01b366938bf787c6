"""Containers that live across requests, and their files: metadata in the database.

The containers themselves belong to the process that holds them and end with it. Files that code wrote are in
the store of files, so they can be downloaded after the container has ended.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from service.common.json import Json
from service.store.files import FileStore, after_row
from service.store.responses import is_dead, runner_id
from service.store.tables import container_files, containers

ACTIVE: Final = "running"
EXPIRED: Final = "expired"


@dataclass(frozen=True, slots=True)
class StoredContainer:
    """One container. Times are Unix seconds."""

    id: str
    owner: str
    name: str
    created_at: float
    last_active_at: float
    idle_minutes: float
    """Minutes without a request after which the container expires."""
    memory_mb: int
    status: str = ACTIVE
    holder: str = field(default_factory=runner_id)
    """Process that holds the container."""
    last_response_id: str | None = None
    """Last response whose code ran in it."""
    inputs: list[Json] = field(default_factory=list)
    """``file_id`` and ``name`` of each input."""


@dataclass(frozen=True, slots=True)
class ContainerFile:
    """One version of a file in a container. Earlier versions of a path stay available by id."""

    id: str
    container_id: str
    owner: str
    path: str
    bytes: int
    sha256: str
    created_at: float
    source: Literal["user", "assistant"]
    blob: str
    current: bool = True


_containers: Final = [containers.c[name] for name in StoredContainer.__dataclass_fields__]
_files: Final = [container_files.c[name] for name in ContainerFile.__dataclass_fields__]


FILE_PREFIX: Final = "cfile_"
"""Beginning of the ids of files in containers."""


def new_container_id() -> str:
    """Return a new id that can't be guessed."""
    return f"cntr_{secrets.token_hex(16)}"


class ContainerStore:
    """Containers in the store's database, each restricted to its owner.

    Args:
        files: contents of the files, and the limits on their sizes.
        keep_days: days that the files of an expired container are kept.
        clock: Unix time.
    """

    def __init__(self, files: FileStore, *, keep_days: float, clock: Callable[[], float] = time.time) -> None:
        self._engine: AsyncEngine = files.engine
        self._uploads = files
        self._keep_s = keep_days * 86_400
        self._clock = clock

    async def put(self, container: StoredContainer) -> None:
        """Store a new container."""
        async with self._engine.begin() as connection:
            await connection.execute(insert(containers).values(**asdict(container)))

    async def get(self, container_id: str, owner: str) -> StoredContainer | None:
        """Return the container, also an expired one, if it belongs to ``owner``."""
        query = select(*_containers).where(containers.c.id == container_id, containers.c.owner == owner)
        async with self._engine.connect() as connection:
            row = (await connection.execute(query)).mappings().first()
        return None if row is None else self._with_status(StoredContainer(**row))

    async def existing(self, container_ids: Collection[str]) -> set[str]:
        """Return those of ``container_ids`` that have a record."""
        query = select(containers.c.id).where(containers.c.id.in_(container_ids))
        async with self._engine.connect() as connection:
            return set((await connection.execute(query)).scalars())

    async def page(
        self,
        owner: str,
        *,
        limit: int,
        order: str = "desc",
        after: str | None = None,
        name: str | None = None,
    ) -> tuple[list[StoredContainer], bool]:
        """Return one page of the containers by time of creation, and whether there are more.

        Raises:
            KeyError: the container ``after`` does not exist.
        """
        where: list[ColumnElement[bool]] = [containers.c.owner == owner]
        if name is not None:
            where.append(containers.c.name == name)
        if after is not None:
            last = await self.get(after, owner)
            if last is None:
                raise KeyError(after)
            where.append(after_row(containers, last.created_at, last.id, order))
        rows = await self._page(containers, _containers, where, limit, order)
        return [self._with_status(StoredContainer(**row)) for row in rows[:limit]], len(rows) > limit

    async def change(self, container_id: str, **values: object) -> None:
        """Set columns of a container."""
        async with self._engine.begin() as connection:
            await connection.execute(
                update(containers).where(containers.c.id == container_id).values(**values)
            )

    async def delete(self, container_id: str) -> None:
        """Delete a container and its files."""
        query = select(container_files.c.blob).where(
            container_files.c.container_id == container_id, container_files.c.source == "assistant"
        )
        async with self._engine.begin() as connection:
            blobs = list((await connection.execute(query)).scalars())
            await connection.execute(
                delete(container_files).where(container_files.c.container_id == container_id)
            )
            await connection.execute(delete(containers).where(containers.c.id == container_id))
        await self._uploads.drop_blobs(blobs)

    async def save_file(
        self, container: StoredContainer, path: str, content: AsyncIterator[bytes]
    ) -> ContainerFile:
        """Store a file that code wrote, as the current version of its path.

        Raises:
            FileTooLargeError: it exceeds a limit of the owner.
            BlobError: the content could not be written.
        """
        blob = secrets.token_hex(16)
        size, digest = await self._uploads.write(blob, content, container.owner, "container")
        try:
            return await self._add(container, path, size, digest, "assistant", blob)
        except BaseException:
            await self._uploads.drop_blobs([blob])
            raise

    async def add_input(
        self, container: StoredContainer, path: str, size: int, digest: str, blob: str
    ) -> ContainerFile:
        """Record an input. It shares the content of its upload."""
        return await self._add(container, path, size, digest, "user", blob)

    async def _add(
        self,
        container: StoredContainer,
        path: str,
        size: int,
        digest: str,
        source: Literal["user", "assistant"],
        blob: str,
    ) -> ContainerFile:
        owner = container.owner
        file = ContainerFile(
            f"{FILE_PREFIX}{secrets.token_hex(16)}",
            container.id,
            owner,
            path,
            size,
            digest,
            self._clock(),
            source,
            blob,
        )
        same = (container_files.c.container_id == container.id, container_files.c.path == path)
        async with self._engine.begin() as connection:
            await self._uploads.lock(connection, owner)
            await connection.execute(update(container_files).where(*same).values(current=False))
            await connection.execute(insert(container_files).values(**asdict(file)))
            if source == "assistant":
                await self._uploads.check_room(connection, owner)
        return file

    async def files_page(
        self, container_id: str, *, limit: int, order: str = "desc", after: str | None = None
    ) -> tuple[list[ContainerFile], bool]:
        """Return one page of the current files of a container, and whether there are more.

        Raises:
            KeyError: the file ``after`` does not exist.
        """
        where: list[ColumnElement[bool]] = [
            container_files.c.container_id == container_id,
            container_files.c.current,
        ]
        if after is not None:
            last = await self.get_file(container_id, after)
            if last is None:
                raise KeyError(after)
            where.append(after_row(container_files, last.created_at, last.id, order))
        rows = await self._page(container_files, _files, where, limit, order)
        return [ContainerFile(**row) for row in rows[:limit]], len(rows) > limit

    async def get_file(self, container_id: str, file_id: str) -> ContainerFile | None:
        """Return a file of a container, also an earlier version."""
        return await self._file(
            container_files.c.id == file_id, container_files.c.container_id == container_id
        )

    async def find_file(self, file_id: str, owner: str) -> ContainerFile | None:
        """Return a file of any container of ``owner``, also an earlier version."""
        return await self._file(container_files.c.id == file_id, container_files.c.owner == owner)

    async def _file(self, *where: ColumnElement[bool]) -> ContainerFile | None:
        query = select(*_files).where(*where)
        async with self._engine.connect() as connection:
            row = (await connection.execute(query)).mappings().first()
        return None if row is None else ContainerFile(**row)

    async def content(self, file: ContainerFile) -> AsyncGenerator[bytes, None]:
        """Yield the file's content.

        Raises:
            BlobError: it can't be read, for example because its upload was deleted.
        """
        async with aclosing(self._uploads.read(file.blob)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def delete_file(self, file: ContainerFile) -> None:
        """Delete a file's row and, if code wrote it, its content."""
        async with self._engine.begin() as connection:
            await connection.execute(delete(container_files).where(container_files.c.id == file.id))
        if file.source == "assistant":
            await self._uploads.drop_blobs([file.blob])

    async def clean(self) -> None:
        """Delete containers that ended long ago, with their files."""
        before = self._clock() - self._keep_s
        query = select(containers.c.id, containers.c.last_active_at, containers.c.idle_minutes)
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).all()
        for container_id, last_active_at, idle_minutes in rows:
            if last_active_at + idle_minutes * 60 < before:
                await self.delete(container_id)

    async def _page(
        self,
        table: Any,
        columns: Sequence[Any],
        where: Sequence[ColumnElement[bool]],
        limit: int,
        order: str,
    ) -> list[Any]:
        keys = (table.c.created_at, table.c.id)
        ordered = keys if order == "asc" else tuple(key.desc() for key in keys)
        query = select(*columns).where(*where).order_by(*ordered).limit(limit + 1)
        async with self._engine.connect() as connection:
            return list((await connection.execute(query)).mappings())

    def _with_status(self, container: StoredContainer) -> StoredContainer:
        """Return the container as expired if it is idle for too long or its process has ended."""
        idle_s = self._clock() - container.last_active_at
        if container.status == ACTIVE and (idle_s > container.idle_minutes * 60 or is_dead(container.holder)):
            return StoredContainer(**{**asdict(container), "status": EXPIRED})
        return container
