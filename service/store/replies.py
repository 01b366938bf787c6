"""Token ids of chat replies, looked up by owner and content.

Chat completions are not stored. But a reply in which code ran contains control tokens (the execute marker,
the observation). When a client sends the conversation back, they arrive as text, which anyone could have
written. Only replies whose ids are stored here are converted to control tokens again; all other text stays
text.
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
"""Size of a row without its ids, in bytes."""


def digest(content: str) -> str:
    """Return the lookup key of a reply. Surrounding white space is ignored, since some clients strip it."""
    return hashlib.sha256(content.strip().encode("utf-8", "surrogatepass")).hexdigest()


class ReplyStore:
    """Replies in the store's database.

    Args:
        engine: the database, with an up-to-date schema.
        days: how long a reply is kept.
        max_bytes: approximate size limit; above it the oldest replies are removed.
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
        """Store the ids of a reply, replacing an earlier one with the same content."""
        key = {"owner": owner, "digest": digest(content)}
        row = {**key, "ids": list(ids), "expires_at": self._clock() + self._seconds}
        same = (replies.c.owner == owner, replies.c.digest == key["digest"])
        async with self._engine.begin() as connection:
            await connection.execute(delete(replies).where(*same))
            await connection.execute(insert(replies).values(**row, bytes=ROW_BYTES + len(dumps(row)) // 4))

    async def find(self, owner: str, contents: Collection[str]) -> Mapping[str, tuple[int, ...]]:
        """Return the ids of each of ``contents`` that is a stored reply to ``owner``."""
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
        """Remove expired replies, and the oldest ones above the size limit."""
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
