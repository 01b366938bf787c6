"""An event loop in a thread of its own: engine, sandbox and episodes live there for the whole run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class BackgroundLoop:
    """Runs coroutines for synchronous callers. A context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="episodes", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result, or its exception. An interrupt (Ctrl-C) cancels it and waits for its clean-up."""
        settled = threading.Event()
        future = asyncio.run_coroutine_threadsafe(_settle(work, settled), self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            settled.wait(timeout=30)
            raise


async def _settle(work: Coroutine[Any, Any, T], settled: threading.Event) -> T:
    try:
        return await work
    finally:
        settled.set()
