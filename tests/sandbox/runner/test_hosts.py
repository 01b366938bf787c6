"""Load, health and choice of runners, without any runner."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from service.sandbox.runner.hosts import RunnerHost, choose
from service.sandbox.runner.protocol import Address, LoadReport


def host(name: str, **report: object) -> RunnerHost:
    """Return a runner; with fields of a report, it has reported them."""
    made = RunnerHost(Address.parse(f"{name}:1"))
    if report:
        made.reported(load_report(**report), now=0.0, interval_s=2.0)
    return made


def load_report(**fields: object) -> LoadReport:
    values = {"state": "ready", "max_sessions": 10, "connections": 0, "sessions": 0, "waiting": 0}
    return LoadReport.model_validate({**values, **fields})


def opened(runner: RunnerHost, number: int = 1) -> None:
    for _ in range(number):
        runner.opening()
        runner.answered()


def test_capacity_scales_the_load() -> None:
    small = host("small", max_sessions=2, connections=1, sessions=1)
    large = host("large", max_sessions=32, connections=8, sessions=8)
    assert (small.load, large.load) == (0.5, 0.25)
    assert choose([small, large]) is large


def test_sessions_that_wait_count_twice() -> None:
    queue = host("queue", max_sessions=4, connections=6, sessions=4, waiting=2)
    idle = host("idle", max_sessions=4, connections=7, sessions=4, waiting=0)
    assert (queue.load, idle.load) == (2.0, 1.75)


def test_sessions_since_the_last_report_count() -> None:
    runner = host("a", connections=4, sessions=4)
    opened(runner, 3)
    assert runner.load == 0.7
    runner.closed()
    assert runner.load == 0.6
    runner.reported(load_report(connections=2), now=1.0, interval_s=2.0)  # another client's sessions ended
    assert runner.load == 0.2
    runner.closed()
    assert runner.load == 0.1


def test_failed_and_draining_runners_are_the_last_choice() -> None:
    busy = host("busy", connections=50, sessions=10, waiting=40)
    drained = host("drained", state="draining")
    broken = host("broken")
    broken.failed("refused", now=0.0)
    refusing = host("refusing", connections=1)
    refusing.refused()
    hosts = [broken, drained, refusing, busy]
    assert choose(hosts) is busy
    assert not any(runner.available for runner in hosts[:3])
    assert choose(hosts, tried={busy}) in hosts[:3]
    assert choose(hosts, tried=hosts) is None
    refusing.reported(load_report(), now=1.0, interval_s=2.0)
    assert choose(hosts) is refusing


def test_the_pause_between_checks_doubles_up_to_a_limit_and_ends_with_a_success() -> None:
    runner = host("a")
    pauses = []
    for _ in range(40):
        runner.failed("no answer", now=100.0)
        pauses.append(runner.retry_at - 100.0)
    assert 0.25 <= pauses[0] <= 0.5
    assert 1.0 <= pauses[2] <= 2.0
    assert all(7.5 <= pause <= 15.0 for pause in pauses[6:])
    runner.reported(load_report(), now=200.0, interval_s=2.0)
    assert (runner.available, runner.retry_at) == (True, 202.0)
    runner.failed("no answer", now=300.0)
    assert runner.retry_at <= 300.5


def test_a_lost_connection_is_checked_now_but_does_not_exclude_the_runner() -> None:
    runner = host("a", connections=1)
    runner.lost(now=1.0)
    assert (runner.available, runner.retry_at, runner.status().failures) == (True, 1.0, 1)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 200))
def test_sessions_spread_in_proportion_to_the_capacities(capacities: list[int], sessions: int) -> None:
    hosts = [host(f"h{i}", max_sessions=capacity) for i, capacity in enumerate(capacities)]
    placed: Counter[str] = Counter()
    for _ in range(sessions):
        chosen = choose(hosts)
        assert chosen is not None
        opened(chosen)
        placed[chosen.address.host] += 1
    for index, capacity in enumerate(capacities):
        fair = sessions * capacity / sum(capacities)
        # Each runner may be one session ahead or behind, by its own capacity and by those of the others.
        slack = 1 + len(capacities) * capacity / min(capacities)
        assert abs(placed[f"h{index}"] - fair) <= slack
