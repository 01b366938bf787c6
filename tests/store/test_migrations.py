"""Schema upgrades from databases of older versions."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from service.store import database as schema
from service.store.database import StoreError, open_database, prepare
from service.store.responses import ResponseStore
from service.store.tables import metadata
from service.store.usage import UsageStore
from tests.support.stored import Clock, stored

ADDS_A_COLUMN = """
from alembic import op
import sqlalchemy as sa
revision, down_revision, branch_labels, depends_on = "0005", "0004", None, None

def upgrade():
    op.add_column("responses", sa.Column("mood", sa.String(9), server_default="calm"))
"""
BREAKS = (
    ADDS_A_COLUMN.replace('"0005", "0004"', '"0006", "0005"').replace("mood", "mood2")
    + """
    op.execute("INSERT INTO nowhere VALUES (1)")
"""
)


@pytest.fixture
async def database(store_url: str) -> AsyncGenerator[AsyncEngine, None]:
    engine = open_database(store_url)
    yield engine
    async with engine.begin() as connection:
        await connection.run_sync(_drop)
    await engine.dispose()


def _drop(connection: Connection) -> None:
    for table in ("alembic_version", "sandbox_usage"):
        connection.execute(text(f"DROP TABLE IF EXISTS {table}"))
    metadata.drop_all(connection)


def _revisions(tmp_path: Path, *sources: str) -> str:
    """Migrations of this version plus later ones."""
    folder = tmp_path / "migrations"
    caches = shutil.ignore_patterns("__pycache__")  # other tests may be writing them
    shutil.copytree(Path(schema.__file__).parent / "migrations", folder, ignore=caches)
    for number, source in enumerate(sources):
        (folder / "versions" / f"later_{number}.py").write_text(source)
    return str(folder)


async def _upgrade(engine: AsyncEngine, revisions: str) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(schema.upgrade, revisions)


async def _read(engine: AsyncEngine, query: str) -> list[object]:
    async with engine.connect() as connection:
        return list((await connection.execute(text(query))).scalars())


async def test_migrations_create_the_current_tables(database: AsyncEngine) -> None:
    await prepare(database)
    async with database.connect() as connection:
        found = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), metadata)
        )
    assert found == []


async def test_store_without_revisions_keeps_its_responses(store_url: str) -> None:
    if store_url == "sqlite://":
        pytest.skip("nothing older is in memory")
    old = ResponseStore(store_url, clock=Clock())
    await old.start()
    await old.put(stored("resp_old"))
    async with old.engine.begin() as connection:
        for later in (
            "DROP TABLE alembic_version",
            "DROP TABLE chat_replies",
            "DROP TABLE container_files",
            "DROP TABLE containers",
            "DROP TABLE files",
            "DROP TABLE usage_hours",
            "DROP INDEX ix_responses_owner",
            "ALTER TABLE responses DROP COLUMN ids",
        ):
            await connection.execute(text(later))
    await old.stop()
    new = ResponseStore(store_url, clock=Clock())
    await new.start()
    try:
        assert await new.get("resp_old", "me") is not None
        assert await _read(new.engine, "SELECT version_num FROM alembic_version") == ["0004"]
    finally:
        async with new.engine.begin() as connection:
            await connection.run_sync(_drop)
        await new.stop()


async def test_upgrade_of_an_older_database_blocks_the_older_version(
    database: AsyncEngine, store_url: str, tmp_path: Path
) -> None:
    await prepare(database)
    async with database.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO responses VALUES"
                " ('r', '', 1, 2, 'completed', FALSE, NULL, '{}', '[]', '\"\"', 9, NULL, NULL, NULL)"
            )
        )
    await _upgrade(database, _revisions(tmp_path, ADDS_A_COLUMN))
    assert await _read(database, "SELECT mood FROM responses") == ["calm"]
    with pytest.raises(StoreError, match=r"newer version .* schema is 0005, .* up to 0004"):
        await prepare(database)
    assert await _read(database, "SELECT mood FROM responses") == ["calm"]


async def test_failed_upgrade_leaves_the_database_unchanged(database: AsyncEngine, tmp_path: Path) -> None:
    await prepare(database)
    with pytest.raises(Exception, match="nowhere"):
        await _upgrade(database, _revisions(tmp_path, ADDS_A_COLUMN, BREAKS))
    assert await _read(database, "SELECT version_num FROM alembic_version") == ["0004"]
    async with database.connect() as connection:
        columns = await connection.run_sync(lambda sync: inspect(sync).get_columns("responses"))
    assert "mood" not in {column["name"] for column in columns}


async def test_concurrent_starts_upgrade_once(store_url: str) -> None:
    if store_url == "sqlite://":
        pytest.skip("an in-memory database can't be shared")
    stores = [ResponseStore(store_url) for _ in range(6)]
    await asyncio.gather(*(store.start() for store in stores))
    assert await _read(stores[0].engine, "SELECT version_num FROM alembic_version") == ["0004"]
    for store in stores:
        await store.stop()


async def test_newer_store_error_names_the_setting(tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    store = ResponseStore(f"sqlite:///{path}")
    await store.start()
    await store.stop()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    again = ResponseStore(f"sqlite:///{path}")
    with pytest.raises(StoreError, match=r"schema is 9999.*back-up"):
        await again.start()
    await again.stop()


async def test_seconds_of_version_3_are_kept_as_usage(database: AsyncEngine) -> None:
    await prepare(database)
    async with database.begin() as connection:
        for statement in (
            "UPDATE alembic_version SET version_num = '0003'",
            "DROP TABLE usage_hours",
            "DROP INDEX ix_responses_owner",
            "CREATE TABLE sandbox_usage (owner VARCHAR(64), day VARCHAR(10), seconds DOUBLE PRECISION)",
            "INSERT INTO sandbox_usage VALUES ('me', '2026-07-25', 12.5)",
        ):
            await connection.execute(text(statement))
    await prepare(database)
    usage = UsageStore(database, days=1, clock=Clock(1_784_980_800.0))
    assert (await usage.current("me"))[0].sandbox_seconds == 12.5
