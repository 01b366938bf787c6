from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from service.api.telemetry.metrics import LoopHistogram

BUCKETS = (0.001, 0.25, 1)


def shown(registry: CollectorRegistry) -> list[str]:
    """The samples; ``_created`` is the moment it was made, which ours leaves out."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(st.lists(st.one_of(st.sampled_from(BUCKETS), st.floats(0, 2))))
def test_loop_histogram_equals_the_librarys_histogram(values: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    one = LoopHistogram("gap_seconds", "Between tokens.", BUCKETS, ours)
    other = Histogram("gap_seconds", "Between tokens.", buckets=BUCKETS, registry=theirs)
    for value in values:
        one.observe(value)
        other.observe(value)
    assert shown(ours) == shown(theirs)
