"""The pending blocks of an episode, and the events that happen while they run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any, Final

from service.episode.events import ApprovalChanged, LiveOutput, ToolCalled
from service.sandbox.base import ExecutionResult, OnOutput, OutputChunk, SandboxError, Session

RunEvent = ToolCalled | ApprovalChanged | LiveOutput
_QUIET_S: Final = 0.05
"""Seconds without another event after which code that waits for the client is suspended. Threads of the code
may make several calls one after the other."""


class BlockQueue:
    """The pending blocks of one episode, handed to its session in order.

    A session may have to wait for a container at its first block. The blocks wait in this queue, so the
    engine keeps sampling meanwhile. A failure of the sandbox is reported by the next `flush`.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._last: asyncio.Task[None] | None = None
        self._is_empty = True
        """No block has been added since the last flush."""
        self.container_wait_s = 0.0
        """Seconds that the first block since the last flush waited for a container."""

    def prewarm(self) -> None:
        """Ask the session in the background for a container. Blocks added meanwhile are sent after it."""
        self._last = asyncio.create_task(self._session.prepare())

    def add(self, code: str) -> None:
        """Send ``code`` to the session after all earlier blocks. Returns immediately."""
        closed_at = time.monotonic() if self._is_empty else None
        self._is_empty = False
        self._last = asyncio.create_task(self._invoke(self._last, code, closed_at))

    async def _invoke(self, previous: asyncio.Task[None] | None, code: str, closed_at: float | None) -> None:
        try:
            if previous is not None:
                await previous
            await self._session.invoke(code)  # returns as soon as a container has the block
        finally:
            if closed_at is not None:
                self.container_wait_s = time.monotonic() - closed_at

    async def flush(self, on_output: OnOutput | None = None) -> ExecutionResult:
        """Return the result of all blocks since the last flush; ``sandbox_error`` if the sandbox failed.

        Args:
            on_output: receives the output while the blocks run; None for no live output.
        """
        began = time.monotonic()
        last, self._last = self._last, None
        self._is_empty = True
        try:
            if last is not None:
                await last
            result = await self._session.flush(on_output)
        except SandboxError as error:
            waited = time.monotonic() - began
            return ExecutionResult("", str(error), "sandbox_error", wall_seconds=0.0, waited_seconds=waited)
        # The session counts from the moment it has its container; the model has waited since the flush.
        return replace(result, waited_seconds=max(result.waited_seconds, time.monotonic() - began))

    async def close(self) -> None:
        """Drop pending blocks and close the session."""
        if self._last is not None:
            self._last.cancel()
            await asyncio.gather(self._last, return_exceptions=True)
        await self._session.close()

    async def suspend(self) -> None:
        """Stop the code of the flush; see ``Session.suspend``."""
        await self._session.suspend()

    async def resume(self) -> None:
        """Undo ``suspend``."""
        await self._session.resume()


class EventFeed:
    """Events of running code, which wait here until the episode yields them.

    A slow reader of the episode therefore delays neither the code nor its tools.
    """

    def __init__(self) -> None:
        self._events: asyncio.Queue[RunEvent | None] = asyncio.Queue()
        """None wakes `until`."""

    def add(self, event: RunEvent) -> None:
        self._events.put_nowait(event)

    def wake(self) -> None:
        """Let `until` check again whether the code waits for the client."""
        self._events.put_nowait(None)

    def add_output(self, tool_id: str, chunk: OutputChunk) -> None:
        """Add output of the flush ``tool_id``."""
        self.add(LiveOutput(tool_id, chunk))

    def take(self) -> list[RunEvent]:
        """Return the events since the last time."""
        events = []
        while not self._events.empty():
            events.append(self._events.get_nowait())
        return [event for event in events if event is not None]

    async def until(
        self, flushing: asyncio.Future[Any], waits_for_client: Callable[[], bool] | None = None
    ) -> AsyncGenerator[RunEvent, None]:
        """Yield events until ``flushing`` is done, or until it waits for the client only."""
        while not flushing.done():
            waiting = asyncio.ensure_future(self._events.get())
            try:
                await asyncio.wait(
                    {waiting, flushing},
                    timeout=_QUIET_S if waits_for_client is not None and waits_for_client() else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if waiting.done():
                    if (event := waiting.result()) is not None:
                        yield event
                elif not flushing.done():
                    return
            finally:
                waiting.cancel()
        for event in self.take():
            yield event
