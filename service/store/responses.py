"""Stored responses: create, read, update and delete, always restricted to the owner.

Each running response records its process, so that a later process can prove that it died.
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
"""Statuses of an unfinished response."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One response, with everything needed to continue from it. Times are Unix seconds."""

    id: str
    owner: str
    """Only the owner can read it."""
    created_at: float
    expires_at: float
    status: str
    background: bool
    previous_id: str | None
    body: Json
    """The response object, outputs included."""
    input: list[Json]
    """Input items of this response, in order; without those of earlier responses."""
    text: str = ""
    """The exact text that the model wrote and read."""
    ids: list[int] | None = None
    """``text`` as token ids, without an end token; the next turn continues from them. None in rows of older
    versions."""

    @property
    def is_running(self) -> bool:
        """Whether the response is still queued or in progress."""
        return self.status in RUNNING


def runner_id() -> str:
    """Return an id of this process that is unique across machines."""
    pid = os.getpid()
    return f"{boot_id()}/{pid_namespace()}/{pid}/{process_start(pid)}"


def is_dead(runner: str) -> bool:
    """Whether ``runner`` has provably ended. A process that is not visible from here is assumed alive."""
    boot, namespace, pid, start = (runner.split("/") + [""] * 4)[:4]
    if (boot, namespace) != (boot_id(), pid_namespace()):
        return False
    return pid.isdigit() and process_start(int(pid)) != start


ROW_BYTES: Final = 1024
"""Size of a row without its content (keys, indexes, pages), in bytes."""
MAX_TURNS: Final = 1000
"""Maximum number of responses that `conversation` returns."""

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
        """Connect and upgrade the database to this version's schema.

        Raises:
            StoreError: the database can't be reached or denies access, or was written by a newer version.
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
        """Store a new response. An unfinished one is recorded as run by this process."""
        size = ROW_BYTES + sum(len(dumps(part)) for part in (response.body, response.input, response.text))
        lease = {"runner": self.runner, "seen_at": self._clock()} if response.is_running else {}
        async with self.engine.begin() as connection:
            await connection.execute(insert(responses).values(**asdict(response), **lease, bytes=size))

    async def get(self, response_id: str, owner: str) -> StoredResponse | None:
        """Return the response if it belongs to ``owner`` and has not expired."""
        where = (responses.c.id == response_id, *self._visible(owner))
        async with self.engine.connect() as connection:
            row = (await connection.execute(select(*_columns).where(*where))).mappings().first()
        return None if row is None else _record(row)

    async def conversation(self, response_id: str, owner: str) -> list[StoredResponse]:
        """Return the response and its predecessors, oldest first; empty if the response does not exist.

        If an earlier response was deleted, the list starts after it: the first ``previous_id`` is then not
        None.
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
        """Update an unfinished response; return False if it has ended or was deleted.

        A response can therefore be ended only once: a cancellation and a completion can't both succeed.
        """
        grown = ROW_BYTES + len(dumps(body)) + len(dumps(text))
        values: dict[str, object] = {"status": status, "body": body, "text": text, "ids": ids}
        if status not in RUNNING:
            # `put` has already counted the input; add the new body.
            values |= {"runner": None, "seen_at": None, "bytes": responses.c.bytes + grown}
        where = (responses.c.id == response_id, responses.c.status.in_(RUNNING))
        async with self.engine.begin() as connection:
            result = await connection.execute(update(responses).where(*where).values(**values))
        return bool(result.rowcount)

    async def delete(self, response_id: str, owner: str) -> bool:
        """Delete the response and its events; return False if it does not exist."""
        where = (responses.c.id == response_id, *self._visible(owner))
        async with self.engine.begin() as connection:
            return bool((await connection.execute(delete(responses).where(*where))).rowcount)

    async def add_events(self, response_id: str, new: Sequence[Json]) -> None:
        """Store consecutive events of a stream. No effect if the response was deleted."""
        if not new:
            return
        row = {
            "response_id": response_id,
            "first": _number(new[0]),
            "last": _number(new[-1]),
            "events": list(new),
        }
        grown = responses.c.bytes + len(dumps(row)) // 4  # a high estimate of the compressed size
        there = update(responses).where(responses.c.id == response_id).values(bytes=grown)
        async with self.engine.begin() as connection:
            if (await connection.execute(there)).rowcount:
                await connection.execute(insert(events).values(**row))

    async def events_after(self, response_id: str, number: int) -> list[Json]:
        """Return the stream's events with sequence numbers above ``number``, in order."""
        where = (events.c.response_id == response_id, events.c.last > number)
        query = select(events.c.events).where(*where).order_by(events.c.first)
        async with self.engine.connect() as connection:
            parts = (await connection.execute(query)).scalars().all()
        return [event for part in parts for event in part if _number(event) > number]

    async def last_event(self, response_id: str) -> Json | None:
        """Return the last stored event of the stream."""
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
    assert isinstance(number, int)  # noqa: S101  (set by this server)
    return number
