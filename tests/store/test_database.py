from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from service.store.responses import ResponseStore


async def test_start_waits_for_a_locked_file(tmp_path: Path) -> None:
    """Another starting server holds the file: SQLite would report a locked file immediately."""
    path = tmp_path / "responses.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE something (of TEXT)")
        other.execute("BEGIN IMMEDIATE")
        store = ResponseStore(f"sqlite:///{path}")
        start = asyncio.create_task(store.start())
        await asyncio.sleep(0.3)
        assert not start.done()
        other.execute("COMMIT")
        await start
        await store.stop()
