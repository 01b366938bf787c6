"""Choice between several runners: their load, their health and the back-off after failures. No I/O."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import structlog

from service.sandbox.runner.protocol import Address, LoadReport

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RunnerStatus:
    """State of one runner, as a client sees it."""

    address: str
    up: bool
    """It answered the last request."""
    draining: bool
    sessions: int
    """Open sessions of this client."""
    load: float
    """Sessions of all clients divided by the runner's capacity; those that wait count twice."""
    opened: int
    """Sessions opened since the start."""
    failures: int
    """Failed requests and lost connections since the start."""


class RunnerHost:
    """One runner. Times are seconds of a monotonic clock."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.problem: str | None = None
        """Reason why the last request failed; None if it succeeded."""
        self.retry_at = 0.0
        """Time of the next health check or connection attempt."""
        self._failures_in_row = 0
        self._failures = 0
        self._opened = 0
        self._open = 0
        self._open_at_report = 0
        self._report: LoadReport | None = None
        self._refused = False
        """It refused a session after its last report."""

    @property
    def load(self) -> float:
        """Sessions divided by the runner's capacity; those that wait for a container count twice.

        Sessions that this client opened or closed after the runner's last report are added or subtracted.
        """
        if self._report is None:
            return float(self._open)
        since = self._open - self._open_at_report
        sessions = max(self._report.connections + since, self._open)
        return (sessions + self._report.waiting) / self._report.max_sessions

    @property
    def available(self) -> bool:
        """Whether the runner answered the last request and takes new sessions, as far as is known."""
        if self.problem is not None or self._refused:
            return False
        return self._report is None or self._report.state == "ready"

    def opening(self) -> None:
        """Count a session that is being opened."""
        self._open += 1

    def answered(self) -> None:
        """Record that the runner accepted a session."""
        self._opened += 1
        self._refused = False
        self._recovered()

    def closed(self) -> None:
        """Count the end of a session."""
        self._open -= 1

    def reported(self, report: LoadReport, now: float, interval_s: float) -> None:
        """Record the reply to a health check; the next one is due after ``interval_s``."""
        if self._report is not None and self._report.state != report.state:
            _log.info("runner_state", runner=str(self.address), state=report.state)
        self._report, self._open_at_report = report, self._open
        self._refused = False
        self.retry_at = now + interval_s
        self._recovered()

    def refused(self) -> None:
        """Record that the runner answers but takes no session now."""
        self._refused = True

    def failed(self, problem: str, now: float) -> None:
        """Record a failed request. The pause before the next one doubles up to a limit."""
        if self.problem is None:
            _log.warning("runner_down", runner=str(self.address), problem=problem)
        self.problem = problem
        self._failures += 1
        pause = min(_FIRST_PAUSE_S * 2**self._failures_in_row, _LONGEST_PAUSE_S)
        self._failures_in_row = min(self._failures_in_row + 1, 16)
        self.retry_at = now + pause * random.uniform(0.5, 1.0)  # noqa: S311  (no secret)

    def lost(self, now: float) -> None:
        """Record a lost connection. The next health check is due now."""
        self._failures += 1
        self.retry_at = min(self.retry_at, now)

    def status(self) -> RunnerStatus:
        return RunnerStatus(
            address=str(self.address),
            up=self.problem is None,
            draining=self._report is not None and self._report.state == "draining",
            sessions=self._open,
            load=self.load,
            opened=self._opened,
            failures=self._failures,
        )

    @property
    def not_ready(self) -> str | None:
        """Reason why a new session would fail or wait; None if the runner is ready."""
        if self.problem is not None:
            return self.problem
        if self._report is not None and self._report.state != "ready":
            return "it is draining" if self._report.state == "draining" else "its sandbox is not ready"
        return None

    def _recovered(self) -> None:
        if self.problem is not None:
            _log.info("runner_up", runner=str(self.address))
        self.problem = None
        self._failures_in_row = 0


def choose(hosts: Sequence[RunnerHost], *, tried: Collection[RunnerHost] = ()) -> RunnerHost | None:
    """Return the least loaded available runner that was not tried yet.

    Without an available one, return one of the others: its state may be out of date. Of equals, return the
    one that opened the fewest sessions. None if all were tried.
    """
    left = [host for host in hosts if host not in tried]
    return min(left, key=lambda host: (not host.available, host.load, host.status().opened), default=None)
