"""Calls of tools by the code of an episode, recorded as events."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from service.episode.block_queue import EventFeed
from service.episode.events import ApprovalChanged, CallStatus, CodeToolCall, ToolCalled
from service.sandbox.tool_calls import encode_result
from service.tools.approval import ApprovalRequest, Approvals
from service.tools.base import ToolDeniedError, ToolError, ToolHost, ToolSpec


class RecordedTools:
    """A `ToolHost` that records the calls of another one.

    Args:
        host: runs the tools.
        clock: source of the times, in Unix seconds.
        feed: takes the events.
        approvals: decides about calls of tools with ``needs_approval``. None denies them.
    """

    def __init__(
        self,
        host: ToolHost,
        clock: Callable[[], float],
        feed: EventFeed,
        approvals: Approvals | None = None,
    ) -> None:
        self._approvals = approvals
        if approvals is not None:
            approvals.on_change = lambda request: feed.add(ApprovalChanged(request))
        self._host = host
        self._clock = clock
        self._own = {spec.name: spec for spec in host.specs}
        self._calls: dict[str, CodeToolCall] = {}
        self._feed = feed

    @property
    def specs(self) -> Sequence[ToolSpec]:
        return self._host.specs

    async def call(self, name: str, arguments: dict[str, Any], call_id: str) -> object:
        """Run a tool and record the call. See `ToolHost`."""
        spec = self._own.get(name) or ToolSpec(name)
        approval_id = None
        if spec.needs_approval:
            if self._approvals is None:
                raise ToolDeniedError(f"{name}() can't be approved here")
            approval_id = self._approvals.claim(name, arguments)
            self._feed.wake()  # the code may now wait for the client only
            if approval_id is not None:
                await self._approvals.granted(approval_id)
        self._record(
            CodeToolCall(
                call_id,
                name,
                arguments,
                spec.read_only,
                self._clock(),
                by_client=spec.by_client,
                approval_id=approval_id,
            )
        )
        try:
            output = await self._host.call(name, arguments, call_id)
            encode_result(output)  # the reply contains it too
        except ToolError as error:
            self._end(call_id, "error", error=str(error))
            raise
        except Exception as error:
            self._end(call_id, "error", error=f"the tool failed: {type(error).__name__}")
            raise
        self._end(call_id, "ok", output=output)
        return output

    def announce(self, name: str, arguments: dict[str, Any]) -> None:
        """Request the approval of a call. See `AnnouncedTools`."""
        if self._approvals is not None and name in self._own and self._own[name].needs_approval:
            self._approvals.announce(name, arguments)

    def _end(
        self, call_id: str, status: CallStatus, *, output: object = None, error: str | None = None
    ) -> None:
        call = self._calls.get(call_id)
        if call is not None:  # else its flush has ended
            self._record(replace(call, finished_at=self._clock(), status=status, output=output, error=error))

    def _record(self, call: CodeToolCall) -> None:
        self._calls[call.id] = call
        self._feed.add(ToolCalled(call))

    @property
    def running(self) -> tuple[CodeToolCall, ...]:
        """The calls without a result."""
        return tuple(call for call in self._calls.values() if call.status == "running")

    @property
    def open_approvals(self) -> tuple[ApprovalRequest, ...]:
        """The requests for whose decisions code waits."""
        return () if self._approvals is None else self._approvals.blocking

    def waits_for_client(self) -> bool:
        """Return whether the client must act, and no other tool runs."""
        running = self.running
        return bool(running or self.open_approvals) and all(call.by_client for call in running)

    def take(self) -> tuple[CodeToolCall, ...]:
        """Return the calls since the last flush, and forget them."""
        calls, self._calls = tuple(self._calls.values()), {}
        if self._approvals is not None:
            self._approvals.end_flush()
        return calls


def call_text(call: CodeToolCall) -> str:
    """Return a call as Python, for people and models."""
    given = ", ".join(f"{name}={_literal(value)}" for name, value in call.arguments.items())
    return f"{call.name}({given})"


def _literal(value: object) -> str:
    return repr(value) if isinstance(value, str | int | float | bool | None) else json.dumps(value)
