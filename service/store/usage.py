"""Use of the service per owner: requests, tokens and seconds of code by the hour, and stored bytes.

The counts are in the database, so all servers that share it enforce the same quotas. A request adds to one
row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, case, delete, func, literal, literal_column, select, union_all
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from service.store.tables import container_files, metadata, usage_hours

HOUR_S: Final = 3600
DAY_S: Final = 86_400
_MODEL_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class Consumption:
    """Amounts that requests used."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    """Tokens that the model sampled or that were added to its reply, such as the output of code."""
    sandbox_seconds: float = 0.0
    """Seconds that code ran."""

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class UsageResult:
    """Use in one bucket of time, of one owner and model if the query separates them."""

    start: int
    """Unix time of the start of the bucket."""
    owner: str | None
    model: str | None
    used: Consumption


_SUMS: Final = [
    func.coalesce(func.sum(usage_hours.c[field.name]), 0).label(field.name) for field in fields(Consumption)
]


class UsageStore:
    """Counts of use in the store's database.

    Args:
        engine: the database, with an up-to-date schema.
        days: days that the counts are kept.
        clock: Unix time.
    """

    def __init__(self, engine: AsyncEngine, *, days: float, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._keep_s = days * DAY_S
        self.clock = clock

    async def add(self, owner: str, model: str, used: Consumption) -> None:
        """Add to the current hour."""
        hour = int(self.clock()) // HOUR_S * HOUR_S
        row = {"owner": owner, "hour": hour, "model": model[:_MODEL_CHARS], **asdict(used)}
        dialect = sqlite if self._engine.dialect.name == "sqlite" else postgresql
        statement = dialect.insert(usage_hours).values(row)
        grown = {name: usage_hours.c[name] + statement.excluded[name] for name in asdict(used)}
        keys = list(usage_hours.primary_key.columns)
        async with self._engine.begin() as connection:
            await connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=grown))

    async def current(self, owner: str) -> tuple[Consumption, Consumption]:
        """Return the use of the current day and of the current month (UTC)."""
        day, month = day_start(self.clock()), month_start(self.clock())
        today = [
            func.coalesce(func.sum(case((usage_hours.c.hour >= day, usage_hours.c[field.name]), else_=0)), 0)
            for field in fields(Consumption)
        ]
        query = select(*today, *_SUMS).where(usage_hours.c.owner == owner, usage_hours.c.hour >= month)
        async with self._engine.connect() as connection:
            row = (await connection.execute(query)).one()
        return _consumption(row[: len(today)]), _consumption(row[len(today) :])

    async def stored_bytes(self, owner: str) -> int:
        """Return the bytes that are stored for ``owner``; see `stored_bytes`."""
        async with self._engine.connect() as connection:
            return await stored_bytes(connection, owner)

    async def results(
        self,
        start: int,
        end: int,
        *,
        width_s: int,
        owners: Sequence[str] | None = None,
        models: Sequence[str] | None = None,
        by_owner: bool = False,
        by_model: bool = False,
    ) -> list[UsageResult]:
        """Return the use from ``start`` to ``end`` (exclusive) in buckets of ``width_s``, by time.

        Args:
            start: Unix time, a multiple of ``width_s``.
            end: Unix time.
            width_s: a multiple of an hour.
            owners: only those; None for all.
            models: only those; None for all.
            by_owner: a result for each owner.
            by_model: a result for each model.
        """
        table = usage_hours.c
        bucket = table.hour - table.hour % literal_column(str(width_s))  # no parameter: it is grouped by
        group: list[ColumnElement[Any]] = [
            bucket.label("start"),
            (table.owner if by_owner else literal(None)).label("owner"),
            (table.model if by_model else literal(None)).label("model"),
        ]
        where: list[ColumnElement[bool]] = [table.hour >= start, table.hour < end]
        where += [] if owners is None else [table.owner.in_(owners)]
        where += [] if models is None else [table.model.in_(models)]
        keys = [bucket, *([table.owner] if by_owner else []), *([table.model] if by_model else [])]
        query = select(*group, *_SUMS).where(*where).group_by(*keys).order_by(*keys)
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).all()
        return [UsageResult(int(row[0]), row[1], row[2], _consumption(row[3:])) for row in rows]

    async def clean(self) -> None:
        """Delete counts that are older than the days they are kept, but none of the current month."""
        before = min(self.clock() - self._keep_s, month_start(self.clock()))
        async with self._engine.begin() as connection:
            await connection.execute(delete(usage_hours).where(usage_hours.c.hour < int(before)))


async def stored_bytes(connection: AsyncConnection, owner: str) -> int:
    """Return the bytes of everything that is stored for ``owner``: uploads, files that code wrote, responses
    and replies."""
    sizes = []
    for table in metadata.sorted_tables:
        if "owner" in table.c and "bytes" in table.c:
            size = select(func.coalesce(func.sum(table.c.bytes), 0).label("size")).where(
                table.c.owner == owner
            )
            # An input shares the content of its upload.
            sizes.append(size.where(table.c.source == "assistant") if table is container_files else size)
    whole = union_all(*sizes).subquery()
    return int((await connection.execute(select(func.sum(whole.c.size)))).scalar_one())


def day_start(now: float) -> int:
    """Return the Unix time of the last midnight (UTC)."""
    return int(now) // DAY_S * DAY_S


def month_start(now: float) -> int:
    """Return the Unix time of the start of the current month (UTC)."""
    first = datetime.fromtimestamp(day_start(now), UTC).replace(day=1)
    return int(first.timestamp())


def next_month(now: float) -> int:
    """Return the Unix time of the start of the next month (UTC)."""
    later = datetime.fromtimestamp(month_start(now), UTC) + timedelta(days=32)
    return month_start(later.timestamp())


def _consumption(row: Sequence[Any]) -> Consumption:
    return Consumption(int(row[0]), int(row[1]), int(row[2]), float(row[3]))
