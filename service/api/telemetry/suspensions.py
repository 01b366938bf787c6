"""Prometheus metrics of suspended episodes, whose code waits for the client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

SuspensionEnd = Literal["continued", "expired", "cancelled", "limit", "shutdown"]
"""Reason for the end of a suspension: the client's outputs, no request for too long, a request to cancel or
delete the reply, a later suspension beyond a limit, or the server's end."""


@dataclass(frozen=True, slots=True)
class SuspensionCounts:
    """Present number of suspended episodes, and totals since the start of the process."""

    suspended: int = 0
    memory_bytes: int = 0
    """Memory limits of their containers together."""
    ended: dict[SuspensionEnd, int] = field(default_factory=lambda: dict.fromkeys(get_args(SuspensionEnd), 0))


class SuspensionCollector(Collector):
    """Collector of the counts of one process, read at each scrape.

    Args:
        counts: returns the present counts.
    """

    def __init__(self, counts: Callable[[], SuspensionCounts]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        counts = self._counts()
        yield GaugeMetricFamily(
            "ihgrpo_episodes_suspended",
            "Episodes whose code waits for functions or approvals of the client.",
            value=counts.suspended,
        )
        yield GaugeMetricFamily(
            "ihgrpo_episodes_suspended_bytes",
            "Memory limits of the containers of suspended episodes together.",
            value=counts.memory_bytes,
        )
        ended = CounterMetricFamily(
            "ihgrpo_suspensions_ended", "Ended suspensions of episodes, by reason.", labels=["reason"]
        )
        for reason, number in counts.ended.items():
            ended.add_metric([reason], number)
        yield ended
