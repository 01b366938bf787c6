"""Sandbox interface: sessions, their limits, the result of a flush, and errors.

A ``Sandbox`` starts sessions. A ``Session`` collects blocks of Python with ``invoke`` and runs them with
``flush``, all in one namespace. ``service.sandbox.factory`` builds the implementations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from service.tools.base import ToolHost

Status = Literal["ok", "error", "timeout", "oom", "output_limit", "sandbox_error"]
EagerFallback = Literal["not_separable", "forked", "background_work", "shared_state", "channel_closed"]
"""Reason why blocks ran at the flush although eager execution was on:

* ``not_separable``: a block means something else alone, or does not compile.
* ``forked``: code forked, and the new process would run the following blocks too.
* ``background_work``: a process, thread or timer was active between two blocks.
* ``shared_state``: the namespace held pipes, sockets or shared memory. A run could not be undone.
* ``channel_closed``: code closed the descriptor that connects it to the supervisor.
"""


CANCELLED: Final = "an earlier call was cancelled, which ended its session"
"""Reason why the flush after a cancelled call fails."""
MAX_LIVE_BYTES: Final = 64 << 10
"""Live output of one flush, of stdout and stderr together, in UTF-8 bytes."""


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """A part of what the code of a running flush writes. It is for display: the result has its own copy."""

    stream: Literal["stdout", "stderr"]
    text: str
    attempt: Literal[1, 2] = 1
    """2 if the blocks run again as one script. The chunks of attempt 1 are then void."""
    truncated: bool = False
    """Output before this chunk was left out. Such a chunk may be empty."""


OnOutput = Callable[[OutputChunk], None]
"""Receiver of live output. It must neither block nor raise."""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file or figure of a flush that was stored for download."""

    id: str
    container_id: str
    path: str
    size: int
    """Size in bytes."""
    sha256: str
    media_type: str


@dataclass(frozen=True, slots=True)
class FlushFiles:
    """Files and displays of a flush in a container that lives across requests."""

    files: tuple[OutputFile, ...] = ()
    """Files that the flush created or changed, and its figures."""
    tables: tuple[str, ...] = ()
    """HTML of a data frame that is the last expression. It is data of the tenant and must not be trusted."""
    skipped: tuple[tuple[str, str], ...] = ()
    """Path and reason of each entry that is not returned, see `service.sandbox.files.SkipReason`."""


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """Result of one flush.

    ``status`` is derived from the kernel (wait status, cgroup events), never from what the code printed:

    * ``ok``: the script ran to its end, or exited with code 0.
    * ``error``: it ended with a traceback, another exit code or a signal.
    * ``timeout``: it was killed at the run limit.
    * ``oom``: it was killed at the memory limit.
    * ``output_limit``: it was killed because it wrote more than the output limit.
    * ``sandbox_error``: the sandbox itself failed. Whether the script ran is unknown.
    """

    stdout: str
    stderr: str
    status: Status
    wall_seconds: float
    """Time that the script ran, in seconds."""
    waited_seconds: float
    """Time that the caller waited at the flush, in seconds; with eager execution less than
    ``wall_seconds``."""
    exit_code: int | None = None
    signal: int | None = None
    started_at: float | None = None
    """Unix time at which the first block started; None if nothing ran."""
    finished_at: float | None = None
    """Unix time at which the last block ended; None if nothing ran."""
    runs: tuple[tuple[float, float], ...] = ()
    """Start and end of each block that ran, in Unix seconds. One pair if all blocks ran as one script."""
    pauses: tuple[tuple[float, float], ...] = ()
    """Times within ``runs`` at which a block waited for the flush to call a tool, in Unix seconds. They are
    not part of ``wall_seconds``."""
    container: str | None = None
    """Name of the leased container; None if there was none."""
    eager_fallback: EagerFallback | None = None
    """Reason why the blocks ran at the flush; None if they ran eagerly, or if eager execution was off."""
    files: FlushFiles | None = None
    """None without a container that lives across requests."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Limits of one session. A runner or pool clips them to its own ceiling."""

    run_limit_s: float = 3.0
    """Wall-clock seconds that the blocks of one flush may run."""
    eager: bool = True
    """Start each block in the background as soon as it is invoked."""
    tool_wait_s: float = 60.0
    """Wall-clock seconds that one flush may wait for tools, beside the run limit."""
    tool_calls: int = 100
    """Number of calls of tools that one flush may make."""
    figures: Literal["png", "svg"] | None = None
    """Sessions with files: format of the figures that are open at the end of a flush; None to render none."""
    memory_mb: int | None = None
    """Sessions with files: memory limit of the container in MiB, without its inputs; None for the default."""


class SandboxError(Exception):
    """The sandbox was unavailable or failed. The fault is not in the caller's code."""


class QueueTimeoutError(SandboxError):
    """No container became free in time."""


class Session(Protocol):
    """One episode's namespace, in a container that no other episode uses."""

    async def prepare(self) -> None:
        """Announce that blocks are likely, so that a container is ready for the first one.

        This is only a hint. The session gets no container before its first block: the extra container goes
        to the session that needs one first, so announcements can't starve other sessions. ``close`` withdraws
        the announcement if no block came. Never raises SandboxError.
        """
        ...

    async def invoke(self, code: str) -> None:
        """Add a pending block. It may start in the background; its output is returned by the flush.

        Raises:
            QueueTimeoutError: no container became free in time.
            SandboxError: no container could be started, or the session is closed.
        """
        ...

    async def flush(self, on_output: OnOutput | None = None) -> ExecutionResult:
        """Run the pending blocks in order, as one script, and commit the namespace if it succeeds.

        Args:
            on_output: called with the output of the blocks while they run, at most ``MAX_LIVE_BYTES`` of it.
                What they have written before the flush comes first. None for no live output.

        Errors in the code are part of the result. A sandbox that fails returns ``sandbox_error`` once; the
        next ``invoke`` starts with a new, empty namespace.
        """
        ...

    async def suspend(self) -> None:
        """Stop the code of the current flush, all of which waits for tools, until ``resume``.

        The time does not count for any limit of the flush, except the lifetime of the container. Never
        raises: a failure is reported by the flush. No effect if the flush has ended.
        """
        ...

    async def resume(self) -> None:
        """Undo ``suspend``. Never raises."""
        ...

    async def close(self) -> None:
        """Kill running code and release the container. Never raises; may be called twice."""
        ...


class Sandbox(Protocol):
    """A source of sessions."""

    async def start(self) -> None:
        """Start containers and check their isolation.

        Raises:
            SandboxError: the sandbox did not start, or an isolation check failed.
        """
        ...

    def session(self, limits: SessionLimits, tools: ToolHost | None = None) -> Session:
        """Return a session that leases its container at the first ``invoke``.

        Args:
            limits: limits of the session.
            tools: tools that code can call, as functions of the module ``tools``.
        """
        ...

    async def ready(self) -> bool:
        """Return whether a new session would get a container."""
        ...

    async def stop(self) -> None:
        """End all sessions and release all containers."""
        ...
