"""Turns streamed deltas and the times they came into the spans of a timeline."""

from __future__ import annotations

from typing import Any

from service.terminal.timeline import Span


class Recorder:
    """Feed it each delta with the second it arrived (any clock).

    Server times are shifted onto that clock: a block is announced right after it was invoked, so the least
    difference seen between the two is taken for the clocks' distance.
    """

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._writing_since: float | None = None
        self._waiting_since: float | None = None
        self._last = 0.0
        self._shift: float | None = None
        self._runs: list[dict[str, Any]] = []

    def take(self, delta: dict[str, Any], now: float) -> None:
        self._last = now
        if delta.get("content") and self._writing_since is None and self._waiting_since is None:
            self._writing_since = now
        for tool in delta.get("executed_tools") or []:
            self._take_tool(tool, now)

    def _take_tool(self, tool: dict[str, Any], now: float) -> None:
        match tool["status"]:
            case "pending":
                shift = now - tool["blocks"][-1]["invoked_at"]
                self._shift = shift if self._shift is None else min(self._shift, shift)
            case "running":
                self._end_writing(now)
                self._waiting_since = now
            case _:
                if self._waiting_since is not None:
                    self._spans.append(Span("waits", "wait", self._waiting_since, now))
                self._waiting_since = None
                self._runs.append(tool)

    def _end_writing(self, now: float) -> None:
        if self._writing_since is not None:
            self._spans.append(Span("writes", "write", self._writing_since, now))
        self._writing_since = None

    def spans(self) -> list[Span]:
        """All spans so far; call it at the end."""
        self._end_writing(self._last)
        runs = []
        for number, tool in enumerate(self._runs, start=1):
            if tool["started_at"] is None or tool["finished_at"] is None:
                continue
            shift = self._shift or 0.0
            kind = "run" if tool["status"] == "ok" else "failed"
            runs.append(Span(f"runs {number}", kind, tool["started_at"] + shift, tool["finished_at"] + shift))
        order = {"writes": 0, "waits": 2}
        return sorted([*self._spans, *runs], key=lambda span: order.get(span.lane, 1))
