"""Maintenance of the store: expiry, size limit, heartbeats, and failing of interrupted runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Final

from sqlalchemy import Delete, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from service.common.json import Json
from service.store.database import vacuum
from service.store.responses import RUNNING, ResponseStore, is_dead
from service.store.tables import responses

STALE_S: Final = 60.0
"""A run without a heartbeat for this many seconds is failed, no matter which machine its process was on."""


class StoreMaintenance:
    """Maintenance jobs of the store. Every server of a shared store runs them, in any order.

    Args:
        store: the store.
        max_bytes: approximate size limit; above it the oldest responses are removed first.
        clock: Unix time.
    """

    def __init__(
        self, store: ResponseStore, *, max_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._engine: AsyncEngine = store.engine
        self._max_bytes = max_bytes
        self._clock = clock

    async def heartbeat(self) -> None:
        """Record a heartbeat for the runs of this process."""
        mine = (responses.c.runner == self._store.runner, responses.c.status.in_(RUNNING))
        async with self._engine.begin() as connection:
            await connection.execute(update(responses).where(*mine).values(seen_at=self._clock()))

    async def ended(self, ids: Collection[str]) -> set[str]:
        """Return those of ``ids`` that have been ended or deleted, for example by another server."""
        query = select(responses.c.id).where(responses.c.id.in_(ids), responses.c.status.in_(RUNNING))
        async with self._engine.connect() as connection:
            return set(ids) - set((await connection.execute(query)).scalars())

    async def fail_interrupted(self, failed: Callable[[Json], Json]) -> int:
        """Fail the runs whose process has died; return their number.

        Args:
            failed: converts the body of a running response to that of a failed one.
        """
        query = select(responses.c.id, responses.c.runner, responses.c.seen_at, responses.c.body).where(
            responses.c.status.in_(RUNNING),
            or_(responses.c.runner != self._store.runner, responses.c.seen_at < self._clock() - STALE_S),
        )
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).all()
        count = 0
        for response_id, runner, seen_at, body in rows:
            if is_dead(runner or "") or (seen_at or 0) < self._clock() - STALE_S:
                count += await self._store.change(response_id, status="failed", body=failed(body))
        return count

    async def expire(self) -> int:
        """Remove expired responses, even running ones; return their number."""
        return await self._remove(delete(responses).where(responses.c.expires_at <= self._clock()))

    async def shrink(self) -> int:
        """Remove the oldest finished responses above the size limit; return their number."""
        newest_first = (responses.c.created_at.desc(), responses.c.id)
        kept = func.sum(responses.c.bytes).over(order_by=newest_first).label("kept")
        sizes = select(responses.c.id, kept).subquery()
        over = select(sizes.c.id).where(sizes.c.kept > self._max_bytes)
        return await self._remove(
            delete(responses).where(responses.c.id.in_(over), responses.c.status.not_in(RUNNING))
        )

    async def _remove(self, statement: Delete) -> int:
        async with self._engine.begin() as connection:
            count = (await connection.execute(statement)).rowcount
        if count:
            async with self._engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                await vacuum(connection)
        return count
