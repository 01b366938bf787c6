"""All data of one owner: count it, or delete it."""

from __future__ import annotations

from sqlalchemy import delete, func, select

from service.store.database import vacuum
from service.store.files import FileStore, blob_of
from service.store.tables import container_files, files, metadata

_TABLES = [table for table in metadata.sorted_tables if "owner" in table.c]
"""Tables with the data of owners. Rows of other tables are deleted with the rows that they refer to."""


async def count_owner_data(store: FileStore, owner: str) -> dict[str, int]:
    """Return the number of rows of ``owner`` in each table."""
    async with store.engine.connect() as connection:
        return {
            table.name: (
                await connection.execute(
                    select(func.count()).select_from(table).where(table.c.owner == owner)
                )
            ).scalar_one()
            for table in _TABLES
        }


async def delete_owner_data(store: FileStore, owner: str) -> dict[str, int]:
    """Delete everything that is stored for ``owner``, and return the number of deleted rows of each table.

    The rows are deleted in one transaction, the contents of files after it. Running servers end the owner's
    containers and background responses within a minute.
    """
    uploads = select(files.c.id).where(files.c.owner == owner)
    written = select(container_files.c.blob).where(
        container_files.c.owner == owner, container_files.c.source == "assistant"
    )
    async with store.engine.begin() as connection:
        blobs = [blob_of(file_id) for file_id in (await connection.execute(uploads)).scalars()]
        blobs += (await connection.execute(written)).scalars()
        counts = {}
        for table in reversed(_TABLES):
            result = await connection.execute(delete(table).where(table.c.owner == owner))
            counts[table.name] = result.rowcount
    await store.drop_blobs(blobs)
    async with store.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await vacuum(connection)
    return counts
