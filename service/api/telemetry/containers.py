"""Prometheus metrics of containers that live across requests, and of stored files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.store.files import FileCounts

EndReason = Literal["idle", "lost", "deleted", "key_limit", "memory_limit", "shutdown"]
"""Reason for the end of a container: no request for too long, a failure, a request of its key, more
containers than its key may have, more memory than all parked containers may have, or the server's end."""


@dataclass(slots=True)
class ContainerCounts:
    """Present numbers of containers, and totals since the start of the process."""

    in_use: int = 0
    """Containers that a request holds."""
    parked: int = 0
    """Containers between two requests, also the frozen ones."""
    frozen: int = 0
    parked_bytes: int = 0
    """Memory limits of the parked containers together."""
    started: int = 0
    ended: dict[EndReason, int] = field(default_factory=lambda: dict.fromkeys(get_args(EndReason), 0))
    run_s: float = 0.0
    """Seconds that code ran."""


class ContainerCollector(Collector):
    """Collector of the counts of one process, read at each scrape.

    Args:
        containers: returns the present counts of containers.
        files: counts of the store of files.
    """

    def __init__(self, containers: Callable[[], ContainerCounts], files: FileCounts) -> None:
        self._containers = containers
        self._files = files

    def collect(self) -> Iterator[Metric]:
        counts = self._containers()
        states = GaugeMetricFamily(
            "ihgrpo_containers", "Containers that live across requests, by state.", labels=["state"]
        )
        for state, number in (
            ("in_use", counts.in_use),
            ("parked", counts.parked - counts.frozen),
            ("frozen", counts.frozen),
        ):
            states.add_metric([state], number)
        yield states
        yield GaugeMetricFamily(
            "ihgrpo_containers_parked_bytes",
            "Memory limits of the parked containers, also the frozen ones, together.",
            value=counts.parked_bytes,
        )
        yield CounterMetricFamily(
            "ihgrpo_containers_started", "Started containers that live across requests.", value=counts.started
        )
        ended = CounterMetricFamily(
            "ihgrpo_containers_ended", "Ended containers, by reason.", labels=["reason"]
        )
        for reason, number in counts.ended.items():
            ended.add_metric([reason], number)
        yield ended
        yield CounterMetricFamily(
            "ihgrpo_containers_run_seconds", "Seconds that code ran in these containers.", value=counts.run_s
        )
        written = CounterMetricFamily("ihgrpo_files_written", "Stored files, by source.", labels=["source"])
        written_bytes = CounterMetricFamily(
            "ihgrpo_files_written_bytes", "Bytes of stored files, by source.", labels=["source"]
        )
        for source in self._files.written:
            written.add_metric([source], self._files.written[source])
            written_bytes.add_metric([source], self._files.written_bytes[source])
        yield written
        yield written_bytes
        yield CounterMetricFamily(
            "ihgrpo_files_read_bytes",
            "Bytes read from the store of files, for downloads and for containers.",
            value=self._files.read_bytes,
        )
        yield CounterMetricFamily(
            "ihgrpo_files_rejected", "Files rejected because of a limit of size.", value=self._files.rejected
        )
