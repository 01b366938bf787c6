"""Wait for a condition that another task or process fulfils."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], *, timeout_s: float = 60.0) -> None:
    """Return when ``condition()`` is true. Raise TimeoutError if it stays false."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  (the condition is somebody else's)
            await asyncio.sleep(0.01)
