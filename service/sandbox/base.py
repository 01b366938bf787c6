"""The verbs of a sandbox session, and the result of a flush."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Status = Literal["ok", "error", "timeout", "oom", "output_limit", "sandbox_error"]


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """The outcome of one flush.

    ``status`` comes from the kernel (wait status, cgroup events), never from what the code printed:

    * ``ok``: the script ran to its end (or left with exit code 0).
    * ``error``: it ended with a traceback, another exit code or a signal.
    * ``timeout``: the run limit killed it. ``oom``: the memory limit did.
    * ``output_limit``: it wrote more than the cap and was cut there.
    * ``sandbox_error``: the sandbox itself failed; nothing is known of the script.
    """

    stdout: str
    stderr: str
    status: Status
    wall_seconds: float
    """Time the script ran, in seconds."""
    waited_seconds: float
    """Time the caller waited at the flush, in seconds; with eager execution less than ``wall_seconds``."""
    exit_code: int | None = None
    signal: int | None = None
    started_at: float | None = None
    """Unix time at which the first block began to run; None if nothing ran."""
    finished_at: float | None = None
    runs: tuple[tuple[float, float], ...] = ()
    """Start and end of each block that ran, in Unix seconds; one pair where all ran as one script."""
    container: str | None = None
    """Name of the container that was leased for the code; None where there was none."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What one session may use. A runner clips each to its own ceiling."""

    run_limit_s: float = 3.0
    """Wall-clock seconds that the blocks of one flush may run."""
    eager: bool = True
    """Start a block in the background as soon as it is invoked."""


class SandboxError(Exception):
    """The sandbox could not be had or broke; the caller's code is not to blame."""


class QueueTimeoutError(SandboxError):
    """No container came free in time."""


class Session(Protocol):
    """One episode's namespace, in one container of its own."""

    async def prepare(self) -> None:
        """Announce that blocks are likely, so that a container is ready when the first one comes.

        Only a hint. The session holds no container until its first block: what it makes the sandbox keep
        ready goes to whichever session needs one first, so an announcement can't starve others, and
        ``close`` takes it back if no block came. Never raises SandboxError.
        """
        ...

    async def invoke(self, code: str) -> None:
        """Add a pending block. May start it in the background; its output waits for the flush."""
        ...

    async def flush(self) -> ExecutionResult:
        """Run all that is pending, in order, as one script; commit the namespace if it succeeds.

        Never raises for what the code does. A sandbox that breaks gives status ``sandbox_error`` once; the
        next ``invoke`` starts in a new, empty namespace.
        """
        ...

    async def close(self) -> None:
        """Kill what runs and give the container up. Never raises; may be called twice."""
        ...


class Sandbox(Protocol):
    """Where sessions come from."""

    async def start(self) -> None:
        """Warm up and prove the isolation; raises SandboxError when a proof fails."""
        ...

    def session(self, limits: SessionLimits) -> Session:
        """A session that takes its container at the first ``invoke``, not before."""
        ...

    async def ready(self) -> bool: ...
    async def stop(self) -> None: ...
