"""Events of a running episode, as the API, the trainer and the terminal consume them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from service.deferral.episode import Outcome, RequestedBy
from service.engines.base import TokenChunk
from service.episode.stop_strings import StopStringHit
from service.sandbox.base import EagerFallback, FlushFiles, OutputChunk, Status
from service.tools.approval import ApprovalRequest

CallStatus = Literal["running", "ok", "error"]


@dataclass(frozen=True, slots=True)
class CodeToolCall:
    """A call of a tool by code. Times are Unix seconds."""

    id: str
    name: str
    """Name of the tool in Python."""
    arguments: dict[str, object]
    read_only: bool
    started_at: float
    finished_at: float | None = None
    """None while the tool runs, or if the code ended before it did."""
    status: CallStatus = "running"
    output: object = None
    """The result, a JSON value, if the call succeeded."""
    error: str | None = None
    """The message, if it failed."""
    by_client: bool = False
    """The client of the API runs the tool."""
    approval_id: str | None = None
    """The request that the client has approved; None if the tool needs no approval."""

    @property
    def took_effect(self) -> bool:
        """Whether the call changed something, or may have: it was not seen to fail."""
        return not self.read_only and self.status != "error"


@dataclass(frozen=True, slots=True)
class InvokedBlock:
    """A block that the model closed; ``invoked_at`` is Unix time."""

    code: str
    invoked_at_token: int
    invoked_at: float


def hidden_seconds(runs: Iterable[tuple[float, float]], flushed_at: float) -> float:
    """Return the run time before the flush, in seconds: the part that the model did not wait for.

    This is the one definition of hidden time: the API's ``hidden_ms``, the metrics, the traces, the
    playground, the terminal and the evaluation all use it. Waiting for a container is not run time, so it is
    never subtracted.

    Args:
        runs: start and end of each run, in Unix seconds.
        flushed_at: time of the flush, in Unix seconds.
    """
    return sum(max(min(end, flushed_at) - start, 0.0) for start, end in runs)


@dataclass(frozen=True, slots=True)
class ExecutedTool:
    """A finished flush and its result. Times are Unix seconds, None if nothing ran."""

    id: str
    blocks: tuple[InvokedBlock, ...]
    delayed: int
    """Delayed calls among the blocks, 0 if the flush games the count."""
    output: str
    status: Status
    started_at: float | None
    finished_at: float | None
    flushed_at: float
    """Time of the flush: when the model asked for the output."""
    wall_ms: float
    """Run time of the code."""
    waited_ms: float
    """Time that the model waited for the output."""
    runs: tuple[tuple[float, float], ...] = ()
    """Start and end of each block that ran; a single pair if all ran as one script."""
    pauses: tuple[tuple[float, float], ...] = ()
    """Times within ``runs`` at which the code waited for the flush to call a tool with side effects."""
    container: str | None = None
    """Name of the episode's container; None if no container was available."""
    container_wait_ms: float = 0.0
    """Wait of the first block for a container, from the moment the model closed it."""
    requested_by: RequestedBy = "model"
    """Party that requested the flush. The delay rate counts only the model's flushes."""
    eager_fallback: EagerFallback | None = None
    """Reason why the blocks ran at the flush although eager execution was on."""
    files: FlushFiles | None = None
    """Files and displays; None without a container that lives across requests."""
    calls: tuple[CodeToolCall, ...] = ()
    """Tools that the code called, in order."""

    @property
    def hidden_ms(self) -> float:
        """The part of ``wall_ms`` that passed while the model was still writing."""
        ran = hidden_seconds(self.runs, self.flushed_at) - hidden_seconds(self.pauses, self.flushed_at)
        return max(min(ran * 1000, self.wall_ms), 0.0)


class Sampled(NamedTuple):  # a named tuple for speed, as `TokenChunk`
    """Tokens that the model sampled, or that were forced in its place (`TokenChunk.is_forced`)."""

    chunk: TokenChunk


@dataclass(frozen=True, slots=True)
class CallOpened:
    """The text so far ends with the opening tag of a call of the client's functions. The call follows."""


@dataclass(frozen=True, slots=True)
class CallClosed:
    """The call ends here. Its text may turn out to be invalid."""


@dataclass(frozen=True, slots=True)
class Invoked:
    """A block became pending. It belongs to the upcoming flush ``tool_id``."""

    tool_id: str
    index: int
    block: InvokedBlock


@dataclass(frozen=True, slots=True)
class FlushStarted:
    """A flush began: all pending blocks run and the model waits."""

    tool_id: str
    blocks: tuple[InvokedBlock, ...]
    requested_by: RequestedBy = "model"


@dataclass(frozen=True, slots=True)
class LiveOutput:
    """Code of the running flush ``tool_id`` wrote something. Only if the episode was run with live output."""

    tool_id: str
    chunk: OutputChunk


@dataclass(frozen=True, slots=True)
class FlushFinished:
    """The result of a flush arrived. The observation follows."""

    tool: ExecutedTool


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """Code called a tool, before or during the flush, or the call ended: then with its result."""

    call: CodeToolCall


@dataclass(frozen=True, slots=True)
class FlushSuspended:
    """The code of a flush is stopped: it waits for tools that the client runs. The next event comes when the
    results are there."""

    tool_id: str
    blocks: tuple[InvokedBlock, ...]
    calls: tuple[CodeToolCall, ...]
    """The calls that wait for the client's outputs, in order."""
    approvals: tuple[ApprovalRequest, ...] = ()
    """The calls that wait for the client's approval."""


@dataclass(frozen=True, slots=True)
class ApprovalChanged:
    """Code wants to call a tool that needs approval, or the client has decided."""

    request: ApprovalRequest


@dataclass(frozen=True, slots=True)
class Observed:
    """Tokens that were appended for the model to read."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class AnswerStarted:
    """The turns with code are over. Tokens were appended, and the final answer follows them."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The episode ended."""

    outcome: Outcome
    unflushed: tuple[InvokedBlock, ...] = ()
    """Pending blocks that never ran, except code that is itself the answer."""


EpisodeEvent = (
    Sampled
    | StopStringHit
    | CallOpened
    | CallClosed
    | Invoked
    | FlushStarted
    | ToolCalled
    | ApprovalChanged
    | FlushSuspended
    | LiveOutput
    | FlushFinished
    | Observed
    | AnswerStarted
    | Finished
)
