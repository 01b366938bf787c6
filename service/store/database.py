"""Open the database of a URL: SQLite in a file or in memory, or Postgres.

Why a store can't be used.

Where responses are stored by default. Light: the settings read it.

Bring a database to the newest schema, whole or not at all; one of a newer version is left alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from sqlite3 import SQLITE_BUSY
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool
from tenacity import retry, retry_if_exception, stop_after_delay, wait_random


class StoreError(ValueError):
    """The store can't be opened; the message says why and what to do."""


def default_url() -> str:
    """SQLite in the user's state directory (``$XDG_STATE_HOME``)."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return f"sqlite:///{state / 'ih-grpo' / 'responses.db'}"


REVISIONS: Final = "service.store:migrations"
_LOCK: Final = 5_018_500  # any number of our own


def upgrade(connection: Connection, revisions: str = REVISIONS) -> None:
    """Run the revisions that ``connection``'s database lacks, in the transaction that is open on it.

    Several servers may do so at once: all but one wait. A database of before there were revisions counts as
    one without any.

    Args:
        connection: within a transaction in which nothing was done; its end is the caller's.
        revisions: alembic's script directory.

    Raises:
        StoreError: a newer version wrote the database.
    """
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # the driver would begin none before a CREATE TABLE
    else:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    config = Config()
    config.set_main_option("script_location", revisions)
    config.attributes["connection"] = connection
    _refuse_newer(connection, ScriptDirectory.from_config(config))
    command.upgrade(config, "head")


def _refuse_newer(connection: Connection, scripts: ScriptDirectory) -> None:
    known = {script.revision for script in scripts.walk_revisions()}
    if newer := set(MigrationContext.configure(connection).get_current_heads()) - known:
        raise StoreError(
            f"a newer version of this program wrote the store: its schema is {', '.join(sorted(newer))}, "
            f"and this one knows up to {scripts.get_current_head()}. Install that version again, restore a "
            f"back-up, or name another store_url"
        )


_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
}
_IN_MEMORY = (None, "", ":memory:")
_BUSY_TIMEOUT_MS = 10_000


def open_database(url: str) -> AsyncEngine:
    """The engine for ``url``; nothing is read or made yet.

    Raises:
        StoreError: the URL is none, or its driver is not installed.
    """
    parsed = _parse(url)
    try:
        if parsed.get_backend_name() != "sqlite":
            return create_async_engine(parsed, pool_pre_ping=True)
        if parsed.database in _IN_MEMORY:
            # One connection, never closed: another one would see another database.
            return _with_pragmas(
                create_async_engine(parsed, poolclass=AsyncAdaptedQueuePool, pool_size=1, max_overflow=0)
            )
        return _with_pragmas(create_async_engine(parsed))
    except ModuleNotFoundError as error:
        raise StoreError(f"store_url needs {error.name}: pip install 'ih-grpo[postgres]'") from None


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        return parsed.set(drivername=_DRIVERS[parsed.get_backend_name()])
    except (ArgumentError, KeyError):
        raise StoreError("store_url must be sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME") from None


def _make_private(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def _with_pragmas(engine: AsyncEngine) -> AsyncEngine:
    @event.listens_for(engine.sync_engine, "connect")
    def _connected(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before the first table; room is given back
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    return engine


def _is_busy(error: BaseException) -> bool:
    code = getattr(error.orig, "sqlite_errorcode", 0) if isinstance(error, OperationalError) else 0
    return code & 0xFF == SQLITE_BUSY  # what is above tells the kind


# Several servers may start at once. SQLite needs the file for itself to turn WAL on, and does not wait.
@retry(
    retry=retry_if_exception(_is_busy),
    wait=wait_random(0.01, 0.1),
    stop=stop_after_delay(_BUSY_TIMEOUT_MS / 1000),
    reraise=True,
)
async def prepare(engine: AsyncEngine) -> None:
    """Bring the database to this version's schema. A new file is readable to its owner alone.

    Raises:
        StoreError: a newer version wrote it.
    """
    if engine.dialect.name == "sqlite" and engine.url.database not in _IN_MEMORY:
        _make_private(Path(str(engine.url.database)))
    async with engine.begin() as connection:
        await connection.run_sync(upgrade)


async def vacuum(connection: AsyncConnection) -> None:
    """Shrink an SQLite file to what is in it. Postgres sees to that itself."""
    if connection.dialect.name == "sqlite":
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None  # noqa: S101  (it is connected)
        # As a script: `execute` would take one step, which frees one page.
        await driver.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE);")
