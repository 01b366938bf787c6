"""Episodes whose code waits for functions of the client: they are kept between two requests.

A `LiveEpisode` holds an episode with its container and its connections to tools. If the episode is
suspended, the request ends and `Suspensions` keeps it. The request with the outputs continues it where it
stood. Episodes are kept in this process only, as the connection to their container is.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Final, Literal

import structlog
from fastapi import Depends, Request

from service.api.chat.prepare import PreparedChat
from service.api.errors import ApiError
from service.api.state import EpisodeStream
from service.api.telemetry.suspensions import SuspensionCounts, SuspensionEnd
from service.common.json import Json
from service.episode.accumulator import ReplyAccumulator, Usage, usage_of
from service.episode.events import CodeToolCall, FlushSuspended
from service.store.responses import runner_id
from service.tools.approval import ApprovalRequest, DecidedApprovalError, UnknownApprovalError
from service.tools.base import CODE_CALL_PREFIX

_log = structlog.get_logger(__name__)
_SWEEP_S: Final = 1.0
Api = Literal["chat", "responses", "messages"]


@dataclass(frozen=True, slots=True)
class SuspensionLimits:
    """Limits on suspended episodes."""

    seconds: float = 300.0
    """Time that code waits for the client."""
    per_key: int = 4
    """Suspended episodes of one key. Beyond, its oldest one ends."""
    total: int = 16
    """Suspended episodes of all keys. Beyond, the oldest one ends."""
    memory_mb: int = 4096
    """Memory limits of their containers together, in MiB. Beyond, the oldest ones end."""
    container_memory_mb: int = 512
    """Memory limit of a container of one reply, in MiB."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Values that a client sends to code that waits."""

    outputs: Mapping[str, str] = field(default_factory=dict)
    """Outputs of functions, by the id of the call."""
    failed: frozenset[str] = frozenset()
    """Ids of the calls whose output is the message of an error."""
    approvals: Mapping[str, tuple[bool, str | None]] = field(default_factory=dict)
    """Decisions and their reasons, by the id of the request."""


class LiveEpisode:
    """The episode of a reply, which may continue in later requests.

    Args:
        chat: the request that starts it.
        owner: the key of the client.
        api: the API that starts it, and that alone can continue it.
        waits_for_approvals: open approvals at a flush don't suspend the episode: it waits for the decisions.
    """

    def __init__(
        self, chat: PreparedChat, owner: str, api: Api, *, waits_for_approvals: bool = False
    ) -> None:
        self._waits_for_approvals = waits_for_approvals
        self.api = api
        self.chat = chat
        self.owner = owner
        self.reply_id = chat.id
        """Id of the last reply: a response or a completion."""
        self.reply: ReplyAccumulator | None = None
        """Accumulates the whole reply, over all requests. Set by the first."""
        self.text = ""
        """Content of the earlier messages of the reply; chat only."""
        self.suspended: FlushSuspended | None = None
        """None while it runs."""
        self.expires_at = 0.0
        """Monotonic time at which it ends if it is still suspended."""
        self._counted: Usage | None = None
        self._streams: list[EpisodeStream] | None = None
        self._resources = AsyncExitStack()
        self._handed_over = 0
        """Number of times that it was suspended and kept."""
        self._started = False
        """The episode runs in the current request."""
        self._on_continued: Callable[[], None] | None = None

    @property
    def is_continued(self) -> bool:
        """Whether an earlier request has started the episode."""
        return self._streams is not None

    @property
    def calls(self) -> dict[str, CodeToolCall]:
        """The calls that wait, by their ids."""
        return {} if self.suspended is None else {call.id: call for call in self.suspended.calls}

    @property
    def approvals(self) -> dict[str, ApprovalRequest]:
        """The approvals for whose decisions the suspended code waits, by their ids."""
        requests = () if self.chat.code_tools is None else self.chat.code_tools.approvals.blocking
        return {request.id: request for request in requests}

    def decide(self, request_id: str, *, approve: bool, reason: str | None) -> ApprovalRequest:
        """Decide about a call.

        Raises:
            UnknownApprovalError: the id is unknown.
            DecidedApprovalError: it was decided before.
        """
        if self.chat.code_tools is None:
            raise UnknownApprovalError(request_id)
        return self.chat.code_tools.approvals.decide(request_id, approve=approve, reason=reason)

    @property
    def memory_mb(self) -> int | None:
        """Memory limit of its container, in MiB; None for the default."""
        return None if self.chat.container is None else self.chat.container.live.memory_mb

    def usage(self) -> Usage:
        """Return the token counts of the current request."""
        replies = [] if self.reply is None else [self.reply]
        usage = usage_of(len(self.chat.prompt_ids), replies)
        return usage if self._counted is None else usage.since(self._counted)

    def streams(self, answers: Answers, reply_id: str) -> list[EpisodeStream]:
        """Start or continue the episodes of all choices. Each stream ends where its episode is suspended.

        Args:
            answers: to the calls and approvals that wait.
            reply_id: id of the reply that continues it.
        """
        self._started = True
        if self._streams is None:
            self._streams = self.chat.episodes()
        else:
            self.suspended = None
            self.reply_id = reply_id
            if self._on_continued is not None:
                self._on_continued()
            if self.chat.container is not None:
                self.chat.container.continue_as(self.reply_id)
            if self.chat.code_tools is not None:
                self.chat.code_tools.client.answer(answers.outputs, answers.failed)
                for request_id, (approve, reason) in answers.approvals.items():
                    with contextlib.suppress(UnknownApprovalError, DecidedApprovalError):
                        self.decide(request_id, approve=approve, reason=reason)
        return [self._until_suspended(stream) for stream in self._streams]

    async def _until_suspended(self, stream: EpisodeStream) -> EpisodeStream:
        is_suspended = False
        try:
            async for event in stream:
                if isinstance(event, FlushSuspended):
                    if self._waits_for_approvals and not event.calls and self.chat.code_tools is not None:
                        await self.chat.code_tools.approvals.settled()
                        continue
                    is_suspended, self.suspended = True, event
                yield event
                if is_suspended:
                    return
        finally:
            if not is_suspended:
                await stream.aclose()

    @asynccontextmanager
    async def acquired(self, registry: Suspensions, reply_id: str) -> AsyncGenerator[None, None]:
        """Hold what the episode needs in the context. It ends with the context, unless ``registry`` keeps it.

        Raises:
            ApiError: as `ContainerUse.acquire`; 409 if it was suspended and has ended in the meantime.
        """
        if self.is_continued:
            registry.take(self)
            self._on_continued = partial(registry.count_end, "continued")
        else:
            self._resources.push_async_callback(self.chat.close)
        before, self._started = self._handed_over, False
        try:
            if not self.is_continued:
                await self._resources.enter_async_context(self.chat.held_container())
            with registry.running(self, reply_id):
                yield
        finally:
            if self._handed_over == before:
                if self.is_continued and not self._started:
                    registry.put_back(self)  # there was no room, so the client may try again
                else:
                    await self.end()

    def hand_over(self) -> None:
        """Note that it is kept after this request."""
        self._handed_over += 1
        self._counted = usage_of(len(self.chat.prompt_ids), [] if self.reply is None else [self.reply])

    async def end(self) -> None:
        """End the episode and release its container. Never raises."""
        try:
            for stream in self._streams or ():
                await stream.aclose()
        except Exception:
            _log.exception("episode_not_closed")
        finally:
            try:
                await self._resources.aclose()
            except Exception:
                _log.exception("container_not_released")


class Suspensions:
    """The suspended episodes of this process; ``app.state.suspensions``.

    Args:
        limits: bounds their number, memory and time.
        clock: monotonic time, in seconds.
    """

    def __init__(self, limits: SuspensionLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._kept: dict[str, LiveEpisode] = {}
        """By the id of the reply, the oldest first."""
        self._running: dict[str, LiveEpisode] = {}
        """Episodes of current requests, by the id of the reply."""
        self._sweeper: asyncio.Task[None] | None = None
        self._ended = SuspensionCounts().ended
        self.server = hashlib.sha256(runner_id().encode()).hexdigest()[:8]
        """Label of this process in responses."""

    def __len__(self) -> int:
        return len(self._kept)

    def counts(self) -> SuspensionCounts:
        """Return the present counts."""
        memory_mb = sum(map(self._memory_mb, self._kept.values()))
        return SuspensionCounts(len(self), memory_mb << 20, dict(self._ended))

    def count_end(self, reason: SuspensionEnd) -> None:
        """Count the end of a suspension."""
        self._ended[reason] += 1

    async def start(self) -> None:
        """Start the expiry."""
        self._sweeper = asyncio.create_task(self._sweep_forever())

    async def stop(self) -> None:
        """End all suspended episodes."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        await asyncio.gather(*(self._end(live, "shutdown") for live in list(self._kept.values())))

    async def add(self, live: LiveEpisode) -> None:
        """Keep an episode that was suspended, and end the oldest ones beyond the limits."""
        live.hand_over()
        live.expires_at = self._clock() + self.limits.seconds
        self._kept[live.reply_id] = live
        mine = [other for other in self._kept.values() if other.owner == live.owner]
        surplus = mine[: max(len(mine) - self.limits.per_key, 0)]
        left = [other for other in self._kept.values() if other not in surplus]
        memory = sum(map(self._memory_mb, left))
        while left[:-1] and (len(left) > self.limits.total or memory > self.limits.memory_mb):
            memory -= self._memory_mb(left[0])
            surplus.append(left.pop(0))
        for other in surplus:
            _log.warning("suspended_code_ended", reason="limit", reply=other.reply_id)
            await self._end(other, "limit")

    def _memory_mb(self, live: LiveEpisode) -> int:
        return live.memory_mb or self.limits.container_memory_mb

    def take(self, live: LiveEpisode) -> None:
        """Remove an episode that continues.

        Raises:
            ApiError: 409 if it has ended, or if another request continues it.
        """
        if self._kept.get(live.reply_id) is not live:
            raise not_waiting(())
        del self._kept[live.reply_id]

    def put_back(self, live: LiveEpisode) -> None:
        """Keep an episode that could not continue now, until the same time as before."""
        self._kept[live.reply_id] = live

    @contextmanager
    def running(self, live: LiveEpisode, reply_id: str) -> Iterator[None]:
        """Find the episode by ``reply_id`` inside the context."""
        self._running[reply_id] = live
        try:
            yield
        finally:
            del self._running[reply_id]

    def any_of_reply(self, reply_id: str, owner: str) -> LiveEpisode | None:
        """Return the episode of a reply to ``owner`` that runs or is suspended."""
        live = self._running.get(reply_id) or self._kept.get(reply_id)
        return live if live is not None and live.owner == owner else None

    def of_reply(self, reply_id: str, owner: str) -> LiveEpisode | None:
        """Return the episode that was suspended at the end of a reply to ``owner``."""
        live = self._kept.get(reply_id)
        return live if live is not None and live.owner == owner else None

    def of_calls(self, call_ids: Collection[str], owner: str) -> LiveEpisode | None:
        """Return the episode of ``owner`` that waits for one of these calls or approvals."""
        for live in self._kept.values():
            waiting = {*live.calls, *live.approvals}
            if live.owner == owner and not waiting.isdisjoint(call_ids):
                return live
        return None

    async def end(self, reply_id: str, owner: str) -> bool:
        """End the episode that was suspended at the end of a reply. Return False if there is none."""
        live = self.of_reply(reply_id, owner)
        if live is None:
            return False
        await self._end(live, "cancelled")
        return True

    async def _end(self, live: LiveEpisode, reason: SuspensionEnd) -> None:
        if self._kept.pop(live.reply_id, None) is not None:
            self.count_end(reason)
            await live.end()

    async def sweep(self) -> None:
        """End the episodes that have waited for too long."""
        now = self._clock()
        for live in [live for live in self._kept.values() if now >= live.expires_at]:
            _log.info("suspended_code_ended", reason="expired", reply=live.reply_id)
            await self._end(live, "expired")

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            await self.sweep()

    def seconds_left(self, live: LiveEpisode) -> float:
        """Return the time until a suspended episode ends without outputs."""
        return max(live.expires_at - self._clock(), 0.0)

    def as_json(self, live: LiveEpisode) -> Json:
        """Return the extension field of a response whose code waits."""
        return {"expires_at": int(time.time() + self.seconds_left(live)), "server": self.server}


def is_code_call(call_id: str) -> bool:
    """Return whether a call of this id was made by code."""
    return call_id.startswith(CODE_CALL_PREFIX)


def check_answers(
    live: LiveEpisode, answers: Answers, known: Collection[str], *, api: Api, param: str, model: str
) -> None:
    """Check the outputs with which a request continues an episode.

    Args:
        live: the episode.
        answers: of the request.
        known: ids of other calls that they may answer.
        api: of the request.
        param: the request's field with the answers.
        model: name of the model in the request.

    Raises:
        ApiError: 400 if one is missing, if there was no such call, or if another model is named; 409 if the
            episode was started through another API.
    """
    if api != live.api:
        message = "The code that waits for these outputs was started through another API. Send them there."
        raise ApiError(409, message, code="code_waits_elsewhere")
    outputs = answers.outputs
    missing = [call_id for call_id in live.calls if call_id not in outputs]
    missing += [request_id for request_id in live.approvals if request_id not in answers.approvals]
    if missing:
        raise ApiError(
            400,
            f"Code waits for {len(live.calls) + len(live.approvals)} answers, and these are missing: "
            f"{', '.join(missing)}. Send all of them in one request.",
            param=param,
            code="missing_tool_outputs",
        )
    unknown = [call_id for call_id in outputs if call_id not in live.calls and call_id not in known]
    if unknown:
        raise ApiError(
            400, f"No earlier call has the id '{unknown[0][:80]}'.", param=param, code="invalid_value"
        )
    if model != (name := live.chat.request.model):
        raise ApiError(400, f"'model' must be '{name}', as in the reply that continues.", param="model")


def not_waiting(call_ids: Collection[str], *, elsewhere: bool = False) -> ApiError:
    """Return the error for outputs that no code waits for.

    Args:
        call_ids: the calls.
        elsewhere: the code waits in another process of this service.
    """
    first = next((f"'{call_id[:80]}'" for call_id in call_ids), "these calls")
    if elsewhere:
        message = (
            f"The code that waits for the output of {first} is in another process of this service. Send the "
            "requests of a conversation to the same process."
        )
        return ApiError(409, message, code="code_waits_elsewhere")
    message = (
        f"No code waits for the output of {first}: it was continued already, has expired, was cancelled, "
        "or its server was restarted. Leave out the reply with this call and its outputs, and ask again."
    )
    return ApiError(409, message, code="code_not_waiting")


async def _suspensions_of(request: Request) -> Suspensions:
    suspensions: Suspensions = request.app.state.suspensions
    return suspensions


CurrentSuspensions = Annotated[Suspensions, Depends(_suspensions_of)]
