"""Calls of tools by the code of an episode, recorded as events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from service.episode.events import CallStatus, CodeToolCall, ToolCalled
from service.tools.base import ToolError, ToolHost, ToolSpec

_QUIET_S: Final = 0.05
"""Seconds without another call after which code that waits for the client is suspended. Threads of the code
may make several calls one after the other."""


class RecordedTools:
    """A `ToolHost` that records the calls of another one.

    Args:
        host: runs the tools.
        clock: source of the times, in Unix seconds.
    """

    def __init__(self, host: ToolHost, clock: Callable[[], float]) -> None:
        self._host = host
        self._clock = clock
        self._own = {spec.name: spec for spec in host.specs}
        self._calls: dict[str, CodeToolCall] = {}
        self._events: asyncio.Queue[ToolCalled] = asyncio.Queue()

    @property
    def specs(self) -> Sequence[ToolSpec]:
        return self._host.specs

    async def call(self, name: str, arguments: dict[str, Any], call_id: str) -> object:
        """Run a tool and record the call. See `ToolHost`."""
        spec = self._own.get(name) or ToolSpec(name)
        self._record(
            CodeToolCall(call_id, name, arguments, spec.read_only, self._clock(), by_client=spec.by_client)
        )
        try:
            output = await self._host.call(name, arguments, call_id)
        except ToolError as error:
            self._end(call_id, "error", error=str(error))
            raise
        except Exception as error:
            self._end(call_id, "error", error=f"the tool failed: {type(error).__name__}")
            raise
        self._end(call_id, "ok", output=output)
        return output

    def _end(
        self, call_id: str, status: CallStatus, *, output: object = None, error: str | None = None
    ) -> None:
        call = self._calls.get(call_id)
        if call is not None:  # else its flush has ended
            self._record(replace(call, finished_at=self._clock(), status=status, output=output, error=error))

    def _record(self, call: CodeToolCall) -> None:
        self._calls[call.id] = call
        self._events.put_nowait(ToolCalled(call))

    def new_events(self) -> list[ToolCalled]:
        """Return the events since the last time."""
        events = []
        while not self._events.empty():
            events.append(self._events.get_nowait())
        return events

    @property
    def waiting(self) -> tuple[CodeToolCall, ...]:
        """The calls without a result, if the client runs all of them; otherwise empty."""
        running = tuple(call for call in self._calls.values() if call.status == "running")
        return running if all(call.by_client for call in running) else ()

    async def events_until(self, flushing: asyncio.Future[Any]) -> AsyncGenerator[ToolCalled, None]:
        """Yield events until ``flushing`` is done, or until it waits only for tools that the client runs."""
        while not flushing.done():
            waiting = asyncio.ensure_future(self._events.get())
            try:
                await asyncio.wait(
                    {waiting, flushing},
                    timeout=_QUIET_S if self.waiting else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if waiting.done():
                    yield waiting.result()
                elif not flushing.done():
                    return
            finally:
                waiting.cancel()
        for event in self.new_events():
            yield event

    def take(self) -> tuple[CodeToolCall, ...]:
        """Return the calls since the last flush, and forget them."""
        calls, self._calls = tuple(self._calls.values()), {}
        return calls


def call_text(call: CodeToolCall) -> str:
    """Return a call as Python, for people and models."""
    given = ", ".join(f"{name}={_literal(value)}" for name, value in call.arguments.items())
    return f"{call.name}({given})"


def _literal(value: object) -> str:
    return repr(value) if isinstance(value, str | int | float | bool | None) else json.dumps(value)
