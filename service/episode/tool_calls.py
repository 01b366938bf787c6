"""Calls of tools by the code of an episode, recorded as events."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from service.episode.events import CallStatus, CodeToolCall, ToolCalled
from service.tools.base import ToolError, ToolHost, ToolSpec


class RecordedTools:
    """A `ToolHost` that records the calls of another one.

    Args:
        host: runs the tools.
        clock: source of the times, in Unix seconds.
        record: takes the event of each call, and of its end.
    """

    def __init__(
        self, host: ToolHost, clock: Callable[[], float], record: Callable[[ToolCalled], None]
    ) -> None:
        self._host = host
        self._clock = clock
        self._read_only = {spec.name: spec.read_only for spec in host.specs}
        self._calls: dict[str, CodeToolCall] = {}
        self._on_event = record

    @property
    def specs(self) -> Sequence[ToolSpec]:
        return self._host.specs

    async def call(self, name: str, arguments: dict[str, Any], call_id: str) -> object:
        """Run a tool and record the call. See `ToolHost`."""
        read_only = self._read_only.get(name, False)
        self._record(CodeToolCall(call_id, name, arguments, read_only, self._clock()))
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
        self._on_event(ToolCalled(call))

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
