from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.episode.events import ExecutedTool, hidden_seconds

TIMES = st.floats(0, 100, allow_nan=False)
RUNS = st.lists(st.tuples(TIMES, TIMES).map(lambda pair: (min(pair), max(pair))), max_size=6)


def tool(runs: tuple[tuple[float, float], ...], flushed_at: float, waited_ms: float) -> ExecutedTool:
    return ExecutedTool(
        id="e_0",
        blocks=(),
        delayed=0,
        output="",
        status="ok",
        started_at=runs[0][0] if runs else None,
        finished_at=runs[-1][1] if runs else None,
        flushed_at=flushed_at,
        wall_ms=sum(end - start for start, end in runs) * 1000,
        waited_ms=waited_ms,
        runs=runs,
    )


@pytest.mark.parametrize(
    ("flushed_at", "hidden"),
    [(0.5, 0.0), (1.0, 0.0), (1.5, 0.5), (2.5, 1.0), (3.25, 1.25), (9.0, 2.0)],
)
def test_hidden_time_is_the_run_time_before_the_flush(flushed_at: float, hidden: float) -> None:
    assert hidden_seconds([(1.0, 2.0), (3.0, 4.0)], flushed_at) == hidden


@given(RUNS, TIMES)
def test_hidden_time_is_at_most_the_run_time(runs: list[tuple[float, float]], flushed_at: float) -> None:
    hidden = hidden_seconds(runs, flushed_at)
    assert 0 <= hidden <= sum(end - start for start, end in runs) + 1e-9
    visible = sum(max(end - max(start, flushed_at), 0) for start, end in runs)
    assert hidden + visible == pytest.approx(sum(end - start for start, end in runs), abs=1e-6)


def test_container_wait_does_not_reduce_hidden_time() -> None:
    # Two of three blocks ran before the marker; then the model waited 400 ms, most of it for other reasons.
    runs = ((1.0, 1.1), (1.2, 1.3), (2.0, 2.05))
    assert tool(runs, flushed_at=2.0, waited_ms=400.0).hidden_ms == pytest.approx(200)


def test_hidden_ms_is_at_most_wall_ms() -> None:
    assert tool(((1.0, 2.0),), flushed_at=5.0, waited_ms=0.0).hidden_ms == 1000
    assert tool((), flushed_at=5.0, waited_ms=0.0).hidden_ms == 0
