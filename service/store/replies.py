"""Token ids of chat replies, found again by their owner and content.

A chat completion is not stored. But a reply in which code ran holds control tokens (the execute marker, the
observation), and when a client sends the conversation back they arrive as text, which anybody can write.
Only a reply whose ids are found here becomes control tokens again; all other text stays text.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from service.common.json import dumps
from service.store.tables import replies

ROW_BYTES: Final = 256
"""What a row counts beside its ids."""


def digest(content: str) -> str:
    """Return what a reply is found by. White space at its ends is ignored, since some clients strip it."""
    return hashlib.sha256(content.strip().encode("utf-8", "surrogatepass")).hexdigest()


class ReplyStore:
    """Replies in the store's database.

    Args:
        engine: the database, brought to this version's schema.
        days: how long a reply is kept.
        max_bytes: about how much they may take together; beyond it the oldest are removed.
        clock: Unix time.
    """

    def __init__(
        self, engine: AsyncEngine, *, days: float, max_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._engine = engine
        self._seconds = days * 86_400
        self._max_bytes = max_bytes
        self._clock = clock

    async def put(self, owner: str, content: str, ids: Sequence[int]) -> None:
        """Keep the ids of a reply; one with the same content replaces it."""
        key = {"owner": owner, "digest": digest(content)}
        row = {**key, "ids": list(ids), "expires_at": self._clock() + self._seconds}
        same = (replies.c.owner == owner, replies.c.digest == key["digest"])
        async with self._engine.begin() as connection:
            await connection.execute(delete(replies).where(*same))
            await connection.execute(insert(replies).values(**row, bytes=ROW_BYTES + len(dumps(row)) // 4))

    async def find(self, owner: str, contents: Collection[str]) -> Mapping[str, tuple[int, ...]]:
        """Return the ids of those of ``contents`` that are replies to ``owner``."""
        digests = {content: digest(content) for content in contents}
        if not digests:
            return {}
        query = select(replies.c.digest, replies.c.ids).where(
            replies.c.owner == owner,
            replies.c.digest.in_(set(digests.values())),
            replies.c.expires_at > self._clock(),
        )
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).all()
        found = {row.digest: tuple(row.ids) for row in rows}
        return {content: found[key] for content, key in digests.items() if key in found}

    async def clean(self) -> None:
        """Remove what has expired, and the oldest beyond the size."""
        total = func.sum(replies.c.bytes).over(
            order_by=(replies.c.expires_at.desc(), replies.c.owner, replies.c.digest)
        )
        sizes = select(replies.c.owner, replies.c.digest, total.label("total")).subquery()
        over = select(sizes.c.digest).where(
            sizes.c.total > self._max_bytes,
            sizes.c.owner == replies.c.owner,
            sizes.c.digest == replies.c.digest,
        )
        async with self._engine.begin() as connection:
            await connection.execute(delete(replies).where(replies.c.expires_at <= self._clock()))
            await connection.execute(delete(replies).where(over.exists()))
