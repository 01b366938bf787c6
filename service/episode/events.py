"""What a running episode tells its audience: the API, the trainer, a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from service.deferral.episode import Outcome, RequestedBy
from service.engines.base import TokenChunk
from service.episode.stop_strings import StopStringHit
from service.sandbox.base import Status


@dataclass(frozen=True, slots=True)
class InvokedBlock:
    """A block that the model closed; ``invoked_at`` is Unix time."""

    code: str
    invoked_at_token: int
    invoked_at: float


def hidden_seconds(runs: Iterable[tuple[float, float]], flushed_at: float) -> float:
    """Return how much of ``runs`` lies before the flush: run time that the model did not wait for.

    This is the one definition of hidden time: the API's ``hidden_ms``, the metrics, the traces, the
    playground, the terminal and the evaluation all use it. Time spent waiting for a container is not run
    time, so it is never subtracted.

    Args:
        runs: start and end of each run, in Unix seconds.
        flushed_at: when the model asked for the output, in Unix seconds.
    """
    return sum(max(min(end, flushed_at) - start, 0.0) for start, end in runs)


@dataclass(frozen=True, slots=True)
class ExecutedTool:
    """One flush and what came of it. Times are Unix seconds, None where nothing ran."""

    id: str
    blocks: tuple[InvokedBlock, ...]
    delayed: int
    """Delayed calls among the blocks, 0 if the flush games the count."""
    output: str
    status: Status
    started_at: float | None
    finished_at: float | None
    flushed_at: float
    """When the model asked for the output."""
    wall_ms: float
    """How long the code ran."""
    waited_ms: float
    """How long the model waited for it."""
    runs: tuple[tuple[float, float], ...] = ()
    """Start and end of each block that ran; one pair where all ran as one script."""
    container: str | None = None
    """Name of the episode's container; None if no container was available."""
    container_wait_ms: float = 0.0
    """How long the first block waited for a container, from the moment the model closed it."""
    requested_by: RequestedBy = "model"
    """Who decided that the blocks run. The delay rate counts the model's flushes only."""

    @property
    def hidden_ms(self) -> float:
        """The part of ``wall_ms`` that passed while the model was still writing."""
        return min(hidden_seconds(self.runs, self.flushed_at) * 1000, self.wall_ms)


class Sampled(NamedTuple):  # as `TokenChunk`
    """The model wrote these tokens."""

    chunk: TokenChunk


@dataclass(frozen=True, slots=True)
class Invoked:
    """A block became pending in the flush-to-be ``tool_id``."""

    tool_id: str
    index: int
    block: InvokedBlock


@dataclass(frozen=True, slots=True)
class FlushStarted:
    """All that is pending is to run now, and the model waits."""

    tool_id: str
    blocks: tuple[InvokedBlock, ...]
    requested_by: RequestedBy = "model"


@dataclass(frozen=True, slots=True)
class FlushFinished:
    """The result is there; the observation follows."""

    tool: ExecutedTool


@dataclass(frozen=True, slots=True)
class Observed:
    """These tokens were appended for the model to read."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The episode is over."""

    outcome: Outcome
    unflushed: tuple[InvokedBlock, ...] = ()
    """Blocks that were pending and never ran. Code that is the answer itself is not among them."""


EpisodeEvent = Sampled | StopStringHit | Invoked | FlushStarted | FlushFinished | Observed | Finished
