"""Prometheus metrics of requests, tokens and deferred code."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Protocol, runtime_checkable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from service.engines.base import EngineStats
from service.episode.events import (
    EpisodeEvent,
    ExecutedTool,
    Finished,
    FlushFinished,
    Invoked,
    Observed,
    Sampled,
)
from service.episode.stop_strings import StopStringHit
from service.sandbox.base import Sandbox
from service.sandbox.runner.hosts import RunnerStatus


class LoopHistogram(Collector):
    """Histogram without labels for one thread: without a lock, it takes a quarter of the time.

    Args:
        name: name of the metric.
        about: help text of the metric.
        buckets: rising upper bounds, without the last one, infinity.
        registry: exports the histogram.
    """

    def __init__(self, name: str, about: str, buckets: Sequence[float], registry: CollectorRegistry) -> None:
        self._name = name
        self._about = about
        self._bounds = tuple(buckets)
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, value: float) -> None:
        """Count ``value`` in the first bucket with a bound of at least ``value``."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield the cumulative buckets that Prometheus scrapes."""
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._about, buckets=buckets, sum_value=self._sum)


@runtime_checkable
class _HasRunners(Protocol):
    def runners(self) -> list[RunnerStatus]: ...


class _RunnerCollector(Collector):
    """Collector of the client's view of each runner, read at each scrape. Its label is the address."""

    def __init__(self, runners: Callable[[], list[RunnerStatus]]) -> None:
        self._runners = runners

    def collect(self) -> Iterator[Metric]:
        metrics: list[tuple[type[GaugeMetricFamily | CounterMetricFamily], str, str]] = [
            (GaugeMetricFamily, "up", "1 if the runner answered the last request."),
            (GaugeMetricFamily, "draining", "1 if the runner takes no new sessions."),
            (GaugeMetricFamily, "sessions", "Open sessions of this server."),
            (GaugeMetricFamily, "load", "Sessions of all clients divided by the runner's capacity."),
            (CounterMetricFamily, "opened", "Opened sessions."),
            (CounterMetricFamily, "failures", "Failed requests and lost connections."),
        ]
        statuses = self._runners()
        for family, name, about in metrics:
            metric = family(f"ihgrpo_runner_client_{name}", f"By runner: {about}", labels=["runner"])
            for status in statuses:
                metric.add_metric([status.address], float(getattr(status, name)))
            yield metric


_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """Metrics of one server, in a separate registry. All names begin with ``ihgrpo_``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._runners: _RunnerCollector | None = None
        self.requests = self._counter("requests", "HTTP requests, by route and status.", "route", "status")
        self.request_s = self._histogram("request_seconds", "Seconds a request took, by route.", "route")
        self.refused = self._counter("refused", "Requests rejected by a limit, by its name.", "limit")
        self.ignored = self._counter(
            "ignored_fields",
            "Request fields without effect, by name if known.",
            "field",
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens.")
        self.queue_s = self._histogram("queue_seconds", "Seconds a request waited for admission.")
        self.first_token_s = self._histogram(
            "first_token_seconds", "From a request's arrival to its first token, in seconds."
        )
        self.inter_token_s = LoopHistogram(
            "ihgrpo_inter_token_seconds",
            "Seconds between two tokens of one turn, without the wait for a flush.",
            _TOKEN_SECONDS,
            self.registry,
        )
        self.running = self._gauge("episodes_running", "Running episodes.")
        self.waiting = self._gauge("episodes_waiting", "Episodes waiting for admission.")
        self.engine_running = self._gauge("engine_running", "Sequences that the engine is decoding.")
        self.engine_waiting = self._gauge("engine_waiting", "Sequences waiting in the engine.")
        self._cached = self._counter(
            "cached_prompt_tokens", "Prompt tokens that the engine had in its cache."
        )
        self._cached_before = 0
        self._sampled = self._counter("sampled_tokens", "Tokens sampled by the model.")
        self._sampled_since = 0
        """Tokens since the last scrape: a plain sum, because the counter takes a lock."""
        self._observed = self._counter("observation_tokens", "Observation tokens.")
        self._episodes = self._counter("episodes", "Episodes, by outcome.", "outcome")
        self._invoked = self._counter("tool_invoked", "Blocks that became pending.")
        self._executed = self._counter("tool_executed", "Executed blocks, by status.", "status")
        self._by_server = self._counter(
            "tool_flushes_by_server", "Flushes requested by the server at the end of a turn or block."
        )
        self._delayed = self._counter("tool_delayed", "Delayed executed blocks, by status.", "status")
        self._flushes = self._counter("tool_flushes", "Flushes, by status.", "status")
        self._ran = self._counter("tool_run_seconds", "Run time of code in seconds, by status.", "status")
        self._waited = self._counter(
            "tool_waited_seconds", "Seconds that the model waited for code, by status.", "status"
        )
        self._hidden = self._counter(
            "tool_hidden_seconds",
            "Seconds that code ran while the model was still writing, by status.",
            "status",
        )

        self._container = self._counter(
            "tool_container_wait_seconds",
            "Seconds that first blocks waited for a container, by status.",
            "status",
        )

    def watch(self, sandbox: Sandbox) -> None:
        """Export the state of each runner if ``sandbox`` is their client. Later calls have no effect."""
        if self._runners is None and isinstance(sandbox, _HasRunners):
            self._runners = _RunnerCollector(sandbox.runners)
            self.registry.register(self._runners)

    def observe(self, event: EpisodeEvent) -> None:
        """Count one event of an episode."""
        match event:
            case Sampled(chunk):
                self._sampled_since += len(chunk.ids)
            case StopStringHit(ids):
                self._sampled_since += len(ids)
            case Observed(ids):
                self._observed.inc(len(ids))
            case Invoked():
                self._invoked.inc()
            case FlushFinished(tool):
                self._observe_tool(tool)
            case Finished(outcome):
                self._episodes.labels(outcome.value).inc()

    def render(self, *, running: int, waiting: int, engine: EngineStats) -> bytes:
        """Return all metrics in Prometheus' text format, with the current gauges."""
        self.running.set(running)
        self.waiting.set(waiting)
        self.engine_running.set(engine.running)
        self.engine_waiting.set(engine.waiting)
        self._cached.inc(max(engine.cached_tokens - self._cached_before, 0))
        self._cached_before = engine.cached_tokens
        self._sampled.inc(self._sampled_since)
        self._sampled_since = 0
        return generate_latest(self.registry)

    def _observe_tool(self, tool: ExecutedTool) -> None:
        self._flushes.labels(tool.status).inc()
        self._executed.labels(tool.status).inc(len(tool.blocks))
        self._delayed.labels(tool.status).inc(tool.delayed)
        self._by_server.inc(tool.requested_by == "server")
        self._ran.labels(tool.status).inc(tool.wall_ms / 1000)
        self._waited.labels(tool.status).inc(tool.waited_ms / 1000)
        self._hidden.labels(tool.status).inc(tool.hidden_ms / 1000)
        self._container.labels(tool.status).inc(tool.container_wait_ms / 1000)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"ihgrpo_{name}", about, labels, registry=self.registry)

    def _gauge(self, name: str, about: str) -> Gauge:
        return Gauge(f"ihgrpo_{name}", about, registry=self.registry)

    def _histogram(self, name: str, about: str, *labels: str) -> Histogram:
        return Histogram(f"ihgrpo_{name}", about, labels, buckets=_SECONDS, registry=self.registry)
