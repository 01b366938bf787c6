from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from service.cli.timeline import Span, episode_spans, timeline


def shown(table: Table) -> list[str]:
    console = Console(width=60, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_lanes_are_drawn_to_scale() -> None:
    spans = [
        Span("writes", "write", 10.0, 15.0),
        Span("runs 1", "run", 12.0, 19.9),
        Span("waits", "wait", 15.0, 20.0),
    ]
    assert shown(timeline(spans, width=10)) == [
        "writes ██████     5.00 s",
        "runs 1   ████████ 7.90 s",
        "waits       █████ 5.00 s",
        "       0  10.00 s",
    ]


def test_empty_timeline_and_instant_spans() -> None:
    assert "".join(shown(timeline([]))) == ""
    assert shown(timeline([Span("runs 1", "run", 1.0, 1.0)], width=8))[0].count("█") == 1


def flush(blocks: int, runs: list[tuple[float, float]], at: float, waited: float, status: str = "ok") -> Any:
    return {
        "status": status,
        "blocks": [{}] * blocks,
        "flushed_at": at,
        "waited_ms": waited * 1000,
        "runs": [{"started_at": start, "finished_at": end} for start, end in runs],
    }


def test_one_lane_per_block_and_last_block_of_failed_flush_failed() -> None:
    tools = [
        flush(2, [(1.0, 1.5), (2.0, 2.5)], at=3.0, waited=0.5),
        flush(3, [(4.0, 4.25), (4.5, 5.0)], at=4.5, waited=1.0, status="error"),
    ]
    assert episode_spans(0.5, 6.0, tools) == [
        Span("writes", "write", 0.5, 3.0),
        Span("writes", "write", 3.5, 4.5),
        Span("writes", "write", 5.5, 6.0),
        Span("block 1", "run", 1.0, 1.5),
        Span("block 2", "run", 2.0, 2.5),
        Span("block 3", "run", 4.0, 4.25),
        Span("block 4", "failed", 4.5, 5.0),
        Span("waits", "wait", 3.0, 3.5),
        Span("waits", "wait", 4.5, 5.5),
    ]


def test_blocks_that_ran_as_one_script_share_a_lane() -> None:
    spans = episode_spans(0, 3, [flush(2, [(1.0, 2.0)], at=1.0, waited=1.0)])
    assert [span.lane for span in spans] == ["writes", "writes", "blocks 1-2", "waits"]


def test_container_wait_has_its_own_lane_and_kind() -> None:
    tool = flush(1, [(3.0, 3.5)], at=2.0, waited=1.5)
    tool |= {"blocks": [{"invoked_at": 1.0}], "container_wait_ms": 2000.0}
    assert episode_spans(0, 4, [tool]) == [
        Span("writes", "write", 0, 2.0),
        Span("writes", "write", 3.5, 4),
        Span("container", "container", 1.0, 3.0),
        Span("block 1", "run", 3.0, 3.5),
        Span("waits", "container", 2.0, 3.0),
        Span("waits", "wait", 3.0, 3.5),
    ]


def test_container_ready_before_the_marker_adds_no_model_wait() -> None:
    tool = flush(1, [(1.5, 2.5)], at=2.0, waited=0.5)
    tool |= {"blocks": [{"invoked_at": 1.0}], "container_wait_ms": 500.0}
    assert [span for span in episode_spans(0, 3, [tool]) if span.lane in ("waits", "container")] == [
        Span("container", "container", 1.0, 1.5),
        Span("waits", "wait", 2.0, 2.5),
    ]
    tool["container_wait_ms"] = 0.3
    assert "container" not in {span.lane for span in episode_spans(0, 3, [tool])}


def test_each_tool_has_a_lane_for_its_calls() -> None:
    tool = flush(1, [(1.0, 2.0)], at=2.0, waited=0.5)
    tool["calls"] = [
        {"name": "add", "status": "ok", "started_at": 1.1, "finished_at": 1.4},
        {"name": "find", "status": "error", "started_at": 1.4, "finished_at": 1.5},
        {"name": "add", "status": "running", "started_at": 1.6, "finished_at": None},
    ]
    assert [span for span in episode_spans(0, 3, [tool]) if span.lane.endswith("()")] == [
        Span("add()", "call", 1.1, 1.4),
        Span("find()", "failed", 1.4, 1.5),
        Span("add()", "failed", 1.6, 2.5),
    ]


def test_blocks_that_never_ran_have_no_lane() -> None:
    spans = episode_spans(0, 3, [flush(1, [], at=1.0, waited=1.0, status="sandbox_error")])
    assert [span.lane for span in spans] == ["writes", "writes", "waits"]
