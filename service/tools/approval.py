"""Approval of calls: a call of a gated tool is made only after the client has approved its arguments.

Code that runs ahead announces a call before the flush, so the client can decide while the model is still
writing. The call itself is made at the flush.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from service.tools.base import ToolDeniedError

Decider = Literal["client", "timeout"]


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """A call that needs approval. Times are Unix seconds."""

    id: str
    name: str
    """Name of the tool in Python."""
    arguments: dict[str, Any]
    requested_at: float
    decided_at: float | None = None
    approve: bool | None = None
    """None while it is open."""
    reason: str | None = None
    """The client's words."""
    decided_by: Decider | None = None


class UnknownApprovalError(Exception):
    """The id of the request is unknown."""


class DecidedApprovalError(Exception):
    """The request was decided before."""


class Approvals:
    """The requests of one session.

    Args:
        check: returns the error in the arguments of a call; None if they are valid.
        timeout_s: time after which an open request counts as denied, in seconds.
        clock: source of the times.
    """

    def __init__(
        self,
        check: Callable[[str, dict[str, Any]], str | None],
        *,
        timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._check = check
        self._timeout_s = timeout_s
        self._clock = clock
        self._requests: dict[str, ApprovalRequest] = {}
        self._decided: dict[str, asyncio.Event] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._claimed: set[str] = set()
        """Requests whose calls wait for the decision, or were made."""
        self.on_change: Callable[[ApprovalRequest], None] = lambda _: None

    @property
    def open(self) -> tuple[ApprovalRequest, ...]:
        """Requests without a decision."""
        return tuple(request for request in self._requests.values() if request.approve is None)

    @property
    def blocking(self) -> tuple[ApprovalRequest, ...]:
        """Open requests for which code waits at the flush."""
        return tuple(request for request in self.open if request.id in self._claimed)

    def announce(self, name: str, arguments: dict[str, Any]) -> None:
        """Request the approval of a call that code will make at the flush. No effect if it is invalid."""
        if self._check(name, arguments) is None:
            self._request(name, arguments)

    def _request(self, name: str, arguments: dict[str, Any]) -> ApprovalRequest:
        request = ApprovalRequest(f"mcpr_{secrets.token_hex(16)}", name, arguments, self._clock())
        self._requests[request.id] = request
        self._decided[request.id] = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._timers[request.id] = loop.call_later(self._timeout_s, self._expire, request.id)
        self.on_change(request)
        return request

    def claim(self, name: str, arguments: dict[str, Any]) -> str | None:
        """Return the id of the request for a call; None if its arguments are invalid, so it is not made."""
        if self._check(name, arguments) is not None:
            return None
        unclaimed = (request for request in self._requests.values() if request.id not in self._claimed)
        request = next(
            (one for one in unclaimed if (one.name, one.arguments) == (name, arguments)), None
        ) or self._request(name, arguments)
        self._claimed.add(request.id)
        return request.id

    async def granted(self, request_id: str) -> None:
        """Wait until a call is approved.

        Raises:
            ToolDeniedError: the call was denied, or not decided in time.
        """
        await self._decided[request_id].wait()
        request = self._requests[request_id]
        if request.approve:
            return
        if request.decided_by == "timeout":
            raise ToolDeniedError(f"{request.name}() was not approved within {self._timeout_s:g} seconds")
        words = "" if request.reason is None else f": {request.reason}"
        raise ToolDeniedError(f"{request.name}() was denied{words}")

    def decide(self, request_id: str, *, approve: bool, reason: str | None = None) -> ApprovalRequest:
        """Decide a request of the client.

        Raises:
            UnknownApprovalError: it does not exist, or its flush has ended.
            DecidedApprovalError: it was decided before.
        """
        return self._decide(request_id, approve, reason, "client")

    def _decide(self, request_id: str, approve: bool, reason: str | None, by: Decider) -> ApprovalRequest:
        request = self._requests.get(request_id)
        if request is None:
            raise UnknownApprovalError(request_id)
        if request.approve is not None:
            raise DecidedApprovalError(request_id)
        request = replace(request, approve=approve, reason=reason, decided_by=by, decided_at=self._clock())
        self._requests[request_id] = request
        self._timers.pop(request_id).cancel()
        self._decided[request_id].set()
        self.on_change(request)
        return request

    def _expire(self, request_id: str) -> None:
        self._decide(request_id, False, None, "timeout")

    async def settled(self) -> None:
        """Wait until every request for which code waits is decided."""
        while blocking := self.blocking:
            await self._decided[blocking[0].id].wait()

    def end_flush(self) -> None:
        """Forget all requests: their calls were made, or will never be made."""
        for timer in self._timers.values():
            timer.cancel()
        self._requests, self._decided, self._timers, self._claimed = {}, {}, {}, set()
