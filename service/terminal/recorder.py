"""Turns streamed deltas and the times they came into the spans of a timeline."""

from __future__ import annotations

from typing import Any

from service.terminal.spans import episode_spans
from service.terminal.timeline import Span


class Recorder:
    """Feed it each delta with the second it arrived (any clock).

    A block is announced right after it was invoked, so the least difference seen between arrival and
    invocation is taken for the distance between this clock and the server's.
    """

    def __init__(self) -> None:
        self._began: float | None = None
        self._last = 0.0
        self._shift: float | None = None
        self._flushes: list[dict[str, Any]] = []

    def take(self, delta: dict[str, Any], now: float) -> None:
        self._last = now
        if delta.get("content") and self._began is None:
            self._began = now
        for tool in delta.get("executed_tools") or []:
            if tool["status"] == "pending":
                shift = now - tool["blocks"][-1]["invoked_at"]
                self._shift = shift if self._shift is None else min(self._shift, shift)
            elif tool["status"] != "running":
                self._flushes.append(tool)

    def spans(self) -> list[Span]:
        """All spans, on the server's clock; call it at the end."""
        shift = self._shift or 0.0
        if self._began is None:
            return []
        return episode_spans(self._began - shift, self._last - shift, self._flushes)
