"""Stored responses for tests, and a settable clock."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

from service.common.process_id import process_start
from service.store.responses import StoredResponse, is_dead, runner_id


@dataclass
class Clock:
    """A clock with a fixed Unix time."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def stored(response_id: str, **changes: object) -> StoredResponse:
    """A completed response of owner ``me``, created at the clock's start, valid for one day."""
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


def dead_runner() -> str:
    """The id of a process of this machine that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    boot, namespace, *_ = runner_id().split("/")
    runner = f"{boot}/{namespace}/{process.pid}/{process_start(process.pid)}"
    assert not is_dead(runner)
    process.communicate()
    return runner
