"""Stored responses for tests, and a clock that they can set."""

from __future__ import annotations

from dataclasses import dataclass

from service.store.records import StoredResponse


@dataclass
class Clock:
    """Unix time that stands still."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def stored(response_id: str, **changes: object) -> StoredResponse:
    """A completed response of owner ``me``, made at the clock's start, good for a day."""
    fields: dict[str, object] = {
        "id": response_id,
        "owner": "me",
        "created_at": 1_000_000.0,
        "expires_at": 1_086_400.0,
        "status": "completed",
        "background": False,
        "previous_id": None,
        "body": {"id": response_id},
        "input": [{"role": "user", "content": "6 * 7?"}],
        "text": "42",
    }
    return StoredResponse(**{**fields, **changes})  # type: ignore[arg-type]
