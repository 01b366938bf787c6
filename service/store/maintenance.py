"""What keeps the store small and honest: expiry, a bound on its size, and an end for runs that were cut."""

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
"""A run whose process was not seen for so long is given up, wherever that process was."""


class Upkeep:
    """The store's own housework; every server of a shared store does it, in any order.

    Args:
        store: the store.
        max_bytes: about how much it may hold; beyond it the oldest responses go first.
        clock: Unix time.
    """

    def __init__(
        self, store: ResponseStore, *, max_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._engine: AsyncEngine = store.engine
        self._max_bytes = max_bytes
        self._clock = clock

    async def beat(self) -> None:
        """Say that the runs of this process are alive."""
        mine = (responses.c.runner == self._store.runner, responses.c.status.in_(RUNNING))
        async with self._engine.begin() as connection:
            await connection.execute(update(responses).where(*mine).values(seen_at=self._clock()))

    async def ended(self, ids: Collection[str]) -> set[str]:
        """Those of ``ids`` that are over or gone by now: another server ended them."""
        query = select(responses.c.id).where(responses.c.id.in_(ids), responses.c.status.in_(RUNNING))
        async with self._engine.connect() as connection:
            return set(ids) - set((await connection.execute(query)).scalars())

    async def fail_cut(self, failed: Callable[[Json], Json]) -> int:
        """End the runs whose process has died; gives how many.

        Args:
            failed: makes the body of a failed response of that of a running one.
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
        """Remove what has expired; gives how many. A run that outlives its own expiry is stopped by that."""
        return await self._remove(delete(responses).where(responses.c.expires_at <= self._clock()))

    async def shrink(self) -> int:
        """Remove the oldest responses beyond the size; gives how many. Those that run stay."""
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
