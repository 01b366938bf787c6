"""Timeline of an episode: lanes for the model's writing, its code and its waits.

The playground draws the same lanes (``static/lanes.js``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.table import Table
from rich.text import Text

STYLES = {
    "write": "cyan",
    "run": "green",
    "failed": "red",
    "call": "blue",
    "wait": "yellow",
    "container": "magenta",
}


@dataclass(frozen=True, slots=True)
class Span:
    """An activity from ``start`` to ``end``, in seconds of one clock. ``kind`` is a key of STYLES."""

    lane: str
    kind: str
    start: float
    end: float


def timeline(spans: Sequence[Span], width: int = 60) -> Table:
    """Draw one row per lane, in order of first appearance. ``width`` columns represent the whole episode."""
    table = Table.grid(padding=(0, 1))
    if not spans:
        return table
    began = min(span.start for span in spans)
    total = max(max(span.end for span in spans) - began, 1e-9)
    for lane in dict.fromkeys(span.lane for span in spans):
        own = [span for span in spans if span.lane == lane]
        row = Text(" " * width)
        cells = [" "] * width
        for span in own:
            first = min(int((span.start - began) / total * width), width - 1)
            last = min(int((span.end - began) / total * width), width - 1)
            for at in range(first, last + 1):
                cells[at] = "\u2588"
                row.stylize(STYLES[span.kind], at, at + 1)
        row.plain = "".join(cells)
        table.add_row(lane, row, f"{sum(span.end - span.start for span in own):.2f} s")
    table.add_row("", Text(f"0{total:>{width - 3}.2f} s", style="dim"), "")
    return table


MIN_CONTAINER_WAIT_MS: Final = 10.0
"""Shorter waits are the overhead of handing over the block and are not shown."""


def episode_spans(start: float, end: float, tools: Sequence[Mapping[str, Any]]) -> list[Span]:
    """Return the spans of an episode: the model's writing, each block's run, each call of a tool, each wait.

    Waiting for a container has its own lane and kind. The part of it that the model waited for also appears,
    with this kind, in the lane ``waits``.

    Args:
        start: start of the model's writing, in seconds of the same clock as ``tools``.
        end: end of the episode.
        tools: the flushes, as in the API's ``executed_tools``.
    """
    writes: list[Span] = []
    waits: list[Span] = []
    runs: list[Span] = []
    containers: list[Span] = []
    calls: list[Span] = []
    first = 1
    for tool in tools:
        asked = tool["flushed_at"]
        delivered = asked + tool["waited_ms"] / 1000
        writes.append(Span("writes", "write", start, max(asked, start)))
        leased = asked
        if tool.get("container_wait_ms", 0) >= MIN_CONTAINER_WAIT_MS:
            invoked = tool["blocks"][0]["invoked_at"]
            leased = min(invoked + tool["container_wait_ms"] / 1000, delivered)
            containers.append(Span("container", "container", invoked, leased))
        if leased > asked:
            waits.append(Span("waits", "container", asked, leased))
        waits.append(Span("waits", "wait", max(asked, leased), delivered))
        runs += _runs(tool, first)
        calls += _calls(tool, delivered)
        first += len(tool["blocks"])
        start = delivered
    writes.append(Span("writes", "write", start, max(end, start)))
    return writes + containers + runs + calls + waits


def _calls(tool: Mapping[str, Any], delivered: float) -> Iterator[Span]:
    """Yield a span per call, in a lane for each tool. A call that never ended ends with the flush."""
    for call in tool.get("calls", ()):
        kind = "call" if call["status"] == "ok" else "failed"
        finished = call["finished_at"]
        yield Span(f"{call['name']}()", kind, call["started_at"], delivered if finished is None else finished)


def _runs(tool: Mapping[str, Any], first: int) -> Iterator[Span]:
    """Yield a span per block, or one for all blocks that ran as one script. ``first`` is the first block's
    number."""
    count, runs = len(tool["blocks"]), tool["runs"]
    for at, run in enumerate(runs):
        is_last = at == len(runs) - 1
        whole = len(runs) == 1 and count > 1
        lane = f"blocks {first}-{first + count - 1}" if whole else f"block {first + at}"
        kind = "failed" if is_last and tool["status"] != "ok" else "run"
        yield Span(lane, kind, run["started_at"], run["finished_at"])
