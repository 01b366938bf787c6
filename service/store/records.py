"""What is stored of a response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from service.api.wire import Json

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
