"""Database access: open SQLite or Postgres by URL, and upgrade the schema.

An upgrade is applied as one transaction. Databases of newer versions are rejected unchanged.
"""

from __future__ import annotations

import os
import secrets
import tempfile
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
    """The store can't be opened. The message has the cause and a hint."""


def default_url() -> str:
    """Return the default URL: SQLite in the user's state directory (``$XDG_STATE_HOME``)."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return f"sqlite:///{state / 'ih-grpo' / 'responses.db'}"


def default_files_url(store_url: str) -> str:
    """Return the default directory of file contents.

    It lies beside an SQLite database, or in the user's state directory with Postgres. With a database in
    memory it is a temporary directory.
    """
    path = store_url.removeprefix("sqlite://").removeprefix("/")
    if store_url.startswith("sqlite:") and path in _IN_MEMORY:
        return str(Path(tempfile.gettempdir(), f"ih-grpo-files-{secrets.token_hex(8)}"))  # created if used
    if store_url.startswith("sqlite:"):
        return str(Path(path).with_name("files"))
    return str(Path(default_url().removeprefix("sqlite:///")).with_name("files"))


REVISIONS: Final = "service.store:migrations"
_LOCK: Final = 5_018_500  # an arbitrary number, used only by this program


def upgrade(connection: Connection, revisions: str = REVISIONS) -> None:
    """Run the missing migrations in the open transaction of ``connection``.

    Several servers may call this concurrently: all but one wait. A database from before the first migration
    counts as one without migrations.

    Args:
        connection: in a transaction without earlier statements; the caller commits it.
        revisions: alembic's script directory.

    Raises:
        StoreError: the database was written by a newer version.
    """
    if connection.dialect.name == "sqlite":
        # The driver itself would not begin a transaction before CREATE TABLE.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    config = Config()
    config.set_main_option("script_location", revisions)
    config.attributes["connection"] = connection
    _reject_newer(connection, ScriptDirectory.from_config(config))
    command.upgrade(config, "head")


def _reject_newer(connection: Connection, scripts: ScriptDirectory) -> None:
    known = {script.revision for script in scripts.walk_revisions()}
    if newer := set(MigrationContext.configure(connection).get_current_heads()) - known:
        raise StoreError(
            "the store was written by a newer version of this program: its schema is "
            f"{', '.join(sorted(newer))}, and this one knows up to {scripts.get_current_head()}. Install "
            "that version again, restore a back-up, or set another store_url"
        )


_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
}
_IN_MEMORY = (None, "", ":memory:")
_BUSY_TIMEOUT_MS = 10_000


def open_database(url: str) -> AsyncEngine:
    """Return the engine for ``url``, without connecting.

    Raises:
        StoreError: the URL is invalid, or its driver is not installed.
    """
    parsed = _parse(url)
    try:
        if parsed.get_backend_name() != "sqlite":
            return create_async_engine(parsed, pool_pre_ping=True)
        if parsed.database in _IN_MEMORY:
            # A single connection that is never closed: every connection has its own in-memory database.
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
        cursor.execute("PRAGMA auto_vacuum = INCREMENTAL")  # must precede the first table; allows vacuuming
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    return engine


def _is_busy(error: BaseException) -> bool:
    code = getattr(error.orig, "sqlite_errorcode", 0) if isinstance(error, OperationalError) else 0
    return code & 0xFF == SQLITE_BUSY  # the higher bits are the extended code


# Several servers may start at the same time. SQLite needs exclusive access to enable WAL and does not wait
# for it.
@retry(
    retry=retry_if_exception(_is_busy),
    wait=wait_random(0.01, 0.1),
    stop=stop_after_delay(_BUSY_TIMEOUT_MS / 1000),
    reraise=True,
)
async def prepare(engine: AsyncEngine) -> None:
    """Upgrade the database to this version's schema. A new file is readable only by its owner.

    Raises:
        StoreError: the database was written by a newer version.
    """
    if engine.dialect.name == "sqlite" and engine.url.database not in _IN_MEMORY:
        _make_private(Path(str(engine.url.database)))
    async with engine.begin() as connection:
        await connection.run_sync(upgrade)


async def vacuum(connection: AsyncConnection) -> None:
    """Shrink an SQLite file to its content. Postgres vacuums automatically."""
    if connection.dialect.name == "sqlite":
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None  # noqa: S101  (connected above)
        # `execute` would run a single step, which frees only one page.
        await driver.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE);")
