from __future__ import annotations

from typing import Any

from service.cli.timeline import Span, episode_spans


def flush(blocks: int, runs: list[tuple[float, float]], at: float, waited: float, status: str = "ok") -> Any:
    return {
        "status": status,
        "blocks": [{}] * blocks,
        "flushed_at": at,
        "waited_ms": waited * 1000,
        "runs": [{"started_at": start, "finished_at": end} for start, end in runs],
    }


def test_each_block_has_a_lane_and_the_last_of_a_failed_flush_failed() -> None:
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


def test_a_wait_for_a_container_has_a_lane_and_a_kind_of_its_own() -> None:
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


def test_a_container_that_was_ready_before_the_marker_is_no_wait_of_the_model() -> None:
    tool = flush(1, [(1.5, 2.5)], at=2.0, waited=0.5)
    tool |= {"blocks": [{"invoked_at": 1.0}], "container_wait_ms": 500.0}
    assert [span for span in episode_spans(0, 3, [tool]) if span.lane in ("waits", "container")] == [
        Span("container", "container", 1.0, 1.5),
        Span("waits", "wait", 2.0, 2.5),
    ]
    tool["container_wait_ms"] = 0.3
    assert "container" not in {span.lane for span in episode_spans(0, 3, [tool])}


def test_what_never_ran_has_no_lane() -> None:
    spans = episode_spans(0, 3, [flush(1, [], at=1.0, waited=1.0, status="sandbox_error")])
    assert [span.lane for span in spans] == ["writes", "writes", "waits"]
