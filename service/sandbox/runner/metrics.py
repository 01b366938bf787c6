"""Prometheus metrics of the runner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Protocol, runtime_checkable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.sandbox.base import Sandbox
from service.sandbox.pool import PoolStats
from service.sandbox.runner.admission import SessionAdmission

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_GAUGES = {"idle", "leased", "starting", "waiting"}


@runtime_checkable
class _Pooled(Protocol):
    def stats(self) -> PoolStats: ...


class RunnerMetrics:
    """Metrics of one runner, in a separate registry: two runners in one process stay separate.

    Args:
        admission: its numbers of active and waiting sessions are read at each scrape.
        connections: returns the number of connected clients.
        draining: returns whether the runner takes no new sessions.
        sandbox: if it has a pool (a ``stats()`` method), the pool's numbers become ``ihgrpo_pool_<name>``.
        max_sessions: the runner's capacity.
    """

    def __init__(
        self,
        admission: SessionAdmission,
        connections: Callable[[], int],
        draining: Callable[[], bool],
        sandbox: Sandbox,
        *,
        max_sessions: int,
    ) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.flushes = Counter("ihgrpo_runner_flushes", "Flushes by status.", ["status"], registry=registry)
        self.refused = Counter(
            "ihgrpo_runner_refused", "Rejected requests by reason.", ["reason"], registry=registry
        )
        self.admission_seconds = Histogram(
            "ihgrpo_runner_admission_seconds",
            "Seconds that a session waited to be admitted.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.waited_seconds = Histogram(
            "ihgrpo_runner_flush_waited_seconds",
            "Seconds that a caller waited at a flush.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.wall_seconds = Histogram(
            "ihgrpo_runner_flush_wall_seconds",
            "Seconds that the code of a flush ran.",
            buckets=_SECONDS,
            registry=registry,
        )
        for name, text, read in (
            ("connections", "Open connections.", connections),
            ("sessions", "Admitted sessions.", lambda: admission.active),
            ("waiting", "Sessions that wait to be admitted.", lambda: admission.waiting),
            ("max_sessions", "Highest number of admitted sessions.", lambda: max_sessions),
            ("draining", "1 if no new sessions are taken.", draining),
        ):
            Gauge(f"ihgrpo_runner_{name}", text, registry=registry).set_function(read)
        if isinstance(sandbox, _Pooled):
            registry.register(_PoolCollector(sandbox.stats))
        ProcessCollector(registry=registry)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _PoolCollector(Collector):
    """Collector of the pool's numbers, read at each scrape."""

    def __init__(self, stats: Callable[[], PoolStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = asdict(self._stats())
        kills = CounterMetricFamily(
            "ihgrpo_pool_kills", "Killed workers or scripts by reason.", labels=["reason"]
        )
        for reason, count in stats.pop("kills").items():
            kills.add_metric([reason], count)
        yield kills
        for name, value in stats.items():
            family = GaugeMetricFamily if name in _GAUGES else CounterMetricFamily
            yield family(f"ihgrpo_pool_{name}", f"Pool: {name.replace('_', ' ')}.", value=value)
