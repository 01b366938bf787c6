"""Stored responses: put, read, end, delete. Every read names the owner; who is not gets nothing.

What is stored of a response.

Say which process runs a response, so that a later one can prove it dead.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import delete, insert, literal, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from service.common.json import Json, dumps
from service.common.process_id import boot_id, pid_namespace, process_start
from service.store.database import StoreError, open_database, prepare
from service.store.tables import events, responses

RUNNING: Final = ("queued", "in_progress")
"""Statuses of a response that is not over."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One response and what it takes to go on from it. Times are Unix seconds."""

    id: str
    owner: str
    """Whose it is: nobody else can read it."""
    created_at: float
    expires_at: float
    status: str
    background: bool
    previous_id: str | None
    body: Json
    """The response object, outputs included."""
    input: list[Json]
    """Its own input items, in order; not those of earlier responses."""
    text: str = ""
    """What the model wrote and read, exactly."""
    ids: list[int] | None = None
    """The same as token ids, without an end token: a later turn starts from them. None in rows of older
    versions."""

    @property
    def is_running(self) -> bool:
        """Whether more is to come."""
        return self.status in RUNNING


def runner_id() -> str:
    """This process, in words that no other process of any machine has."""
    pid = os.getpid()
    return f"{boot_id()}/{pid_namespace()}/{pid}/{process_start(pid)}"


def is_dead(runner: str) -> bool:
    """Is it proven that ``runner`` has ended? A process that can't be seen from here proves nothing."""
    boot, namespace, pid, start = (runner.split("/") + [""] * 4)[:4]
    if (boot, namespace) != (boot_id(), pid_namespace()):
        return False
    return pid.isdigit() and process_start(int(pid)) != start


ROW_BYTES: Final = 1024
"""What a row counts beside its content: keys, indexes, pages."""
MAX_TURNS: Final = 1000
"""Longest conversation that is read back, in responses."""

_columns: Final = [responses.c[name] for name in StoredResponse.__dataclass_fields__]


class ResponseStore:
    """Responses in a database.

    Args:
        url: ``sqlite:///PATH`` or ``postgresql://...``.
        clock: Unix time.

    Raises:
        StoreError: the URL can't be used.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        self.engine: AsyncEngine = open_database(url)
        self.runner = runner_id()
        self._clock = clock

    async def start(self) -> None:
        """Bring the database to this version's schema.

        Raises:
            StoreError: the database does not answer or refuses, or a newer version wrote it.
        """
        try:
            await prepare(self.engine)
        except (SQLAlchemyError, OSError) as error:
            where = self.engine.url.render_as_string(hide_password=True)
            cause = getattr(error, "orig", None) or error
            raise StoreError(f"store_url {where} can't be opened: {cause}") from error

    async def stop(self) -> None:
        await self.engine.dispose()

    async def put(self, response: StoredResponse) -> None:
        """Store a new response. One that is not over counts as run by this process."""
        size = ROW_BYTES + sum(len(dumps(part)) for part in (response.body, response.input, response.text))
        lease = {"runner": self.runner, "seen_at": self._clock()} if response.is_running else {}
        async with self.engine.begin() as connection:
            await connection.execute(insert(responses).values(**asdict(response), **lease, bytes=size))

    async def get(self, response_id: str, owner: str) -> StoredResponse | None:
        """The response, if ``owner`` has it and it has not expired."""
        where = (responses.c.id == response_id, *self._visible(owner))
        async with self.engine.connect() as connection:
            row = (await connection.execute(select(*_columns).where(*where))).mappings().first()
        return None if row is None else _record(row)

    async def conversation(self, response_id: str, owner: str) -> list[StoredResponse]:
        """The response and those before it, the oldest first; empty if there is no such response.

        It ends early where an earlier one is gone: then the first one's ``previous_id`` is not None.
        """
        link = (responses.c.id, responses.c.previous_id)
        chain = (
            select(*link, literal(0).label("depth"))
            .where(responses.c.id == response_id, *self._visible(owner))
            .cte("chain", recursive=True)
        )
        chain = chain.union_all(
            select(*link, chain.c.depth + 1).where(
                responses.c.id == chain.c.previous_id,
                chain.c.depth < MAX_TURNS - 1,
                *self._visible(owner),
            )
        )
        query = select(*_columns).join(chain, responses.c.id == chain.c.id).order_by(chain.c.depth.desc())
        async with self.engine.connect() as connection:
            return [_record(row) for row in (await connection.execute(query)).mappings()]

    async def change(
        self, response_id: str, *, status: str, body: Json, text: str = "", ids: list[int] | None = None
    ) -> bool:
        """Replace what is stored of a response that is not over; False if it is over, or gone.

        So a response is ended once: who cancels it and who completes it can't both succeed.
        """
        grown = ROW_BYTES + len(dumps(body)) + len(dumps(text))
        values: dict[str, object] = {"status": status, "body": body, "text": text, "ids": ids}
        if status not in RUNNING:
            # The input was counted when it was put; the body is counted anew.
            values |= {"runner": None, "seen_at": None, "bytes": responses.c.bytes + grown}
        where = (responses.c.id == response_id, responses.c.status.in_(RUNNING))
        async with self.engine.begin() as connection:
            result = await connection.execute(update(responses).where(*where).values(**values))
        return bool(result.rowcount)

    async def delete(self, response_id: str, owner: str) -> bool:
        """Remove the response and its events; False if there was none."""
        where = (responses.c.id == response_id, *self._visible(owner))
        async with self.engine.begin() as connection:
            return bool((await connection.execute(delete(responses).where(*where))).rowcount)

    async def add_events(self, response_id: str, new: Sequence[Json]) -> None:
        """Keep some of a stream's events, in order; nothing if the response is gone."""
        if not new:
            return
        row = {
            "response_id": response_id,
            "first": _number(new[0]),
            "last": _number(new[-1]),
            "events": list(new),
        }
        grown = responses.c.bytes + len(dumps(row)) // 4  # compressed; rather too much than too little
        there = update(responses).where(responses.c.id == response_id).values(bytes=grown)
        async with self.engine.begin() as connection:
            if (await connection.execute(there)).rowcount:
                await connection.execute(insert(events).values(**row))

    async def events_after(self, response_id: str, number: int) -> list[Json]:
        """The stream's events whose sequence number is above ``number``, in order."""
        where = (events.c.response_id == response_id, events.c.last > number)
        query = select(events.c.events).where(*where).order_by(events.c.first)
        async with self.engine.connect() as connection:
            parts = (await connection.execute(query)).scalars().all()
        return [event for part in parts for event in part if _number(event) > number]

    async def last_event(self, response_id: str) -> Json | None:
        """The last of the stream's events that is stored."""
        query = select(events.c.events).where(events.c.response_id == response_id)
        async with self.engine.connect() as connection:
            part = (await connection.execute(query.order_by(events.c.first.desc()).limit(1))).scalar()
        return part[-1] if part else None

    def _visible(self, owner: str) -> tuple[Any, Any]:
        return responses.c.owner == owner, responses.c.expires_at > self._clock()


def _record(row: RowMapping) -> StoredResponse:
    return StoredResponse(**row)


def _number(event: Json) -> int:
    number = event["sequence_number"]
    assert isinstance(number, int)  # noqa: S101  (ours)
    return number
