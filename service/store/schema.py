"""Bring a database to the newest schema, whole or not at all; one of a newer version is left alone."""

from __future__ import annotations

from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from service.store.errors import StoreError

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
