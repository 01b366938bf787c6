"""Tool calls of one session: each is made at most once, also if the blocks of a flush run twice.

An eager run that is given up runs again as one script. Its calls are then answered from a journal: the n-th
call of a tool with the same arguments gets the n-th result. Calls with side effects wait for the flush (see
``sandbox_image/worker/supervisor.py``). If the second run makes different ones, they fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import secrets
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn

import structlog

from service.sandbox.base import SandboxError, SessionLimits
from service.sandbox.worker_protocol import ToolCallFrame, ToolHeld
from service.tools.base import (
    CODE_CALL_PREFIX,
    MAX_ERROR_CHARS,
    MAX_JSON_DEPTH,
    MAX_RESULT_BYTES,
    AnnouncedTools,
    ToolDeniedError,
    ToolError,
    ToolHost,
    ToolSpec,
)
from service.tools.stubs import stub

_log = structlog.get_logger(__name__)
_BATCH_S: Final = 1.0
"""Seconds that a call waits for others that the code has announced."""


class CallOutcome(NamedTuple):
    """The end of a call."""

    ok: bool
    value: str
    """The result as JSON, or the message of the error."""
    denied: bool = False


@dataclass(slots=True)
class _JournalEntry:
    name: str
    arguments: str
    has_effects: bool
    task: asyncio.Task[CallOutcome]
    attempt: int


class ToolCalls:
    """Makes the calls of one session and returns their results to the worker.

    Args:
        host: runs the tools.
        limits: limits of the session.
        send: sends a frame to the worker.
    """

    def __init__(
        self, host: ToolHost, limits: SessionLimits, send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        self._host = host
        self._limits = limits
        self._send = send
        self._specs = {spec.name: spec for spec in host.specs}
        self._journal: list[_JournalEntry] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._received = 0
        self._batch: list[ToolCallFrame] = []
        """Calls that wait for others that the code makes at the same time."""
        self._batch_end: asyncio.TimerHandle | None = None
        self.flushing = False
        """The flush was requested, so calls with side effects may be made."""

    def open_fields(self) -> dict[str, Any]:
        """Return the fields of the ``open`` frame that describe the tools."""
        return {
            "tools": [stub(spec) for spec in self._specs.values()],
            "read_only": [spec.name for spec in self._specs.values() if _runs_ahead(spec)],
            "announced": [spec.name for spec in self._specs.values() if spec.needs_approval],
            "max_calls": self._limits.tool_calls,
            "tool_wait_s": self._limits.tool_wait_s,
        }

    def begin(self, frame: ToolCallFrame) -> None:
        """Answer a call in the background.

        Raises:
            SandboxError: the worker passed on a call that it should have rejected.
        """
        self._received += 1
        if self._received > 2 * self._limits.tool_calls:  # a flush may run twice
            raise SandboxError("the worker passed on more calls of tools than its limit")
        spec = self._specs.get(frame.name)
        if not self.flushing and (spec is None or not _runs_ahead(spec)):
            raise SandboxError("the worker passed on a call of a tool before the flush")
        self._batch.append(frame)
        if self._batch_end is not None:
            self._batch_end.cancel()
            self._batch_end = None
        if frame.following:
            self._batch_end = asyncio.get_running_loop().call_later(_BATCH_S, self._begin_batch)
        else:
            self._begin_batch()

    def _begin_batch(self) -> None:
        batch, self._batch = self._batch, []
        for frame in batch:
            self._start(self._answer(frame))

    def announce(self, frame: ToolHeld) -> None:
        """Notify the host of a call that waits for the flush.

        Raises:
            SandboxError: the worker reports more than it should.
        """
        self._received += 1
        spec = self._specs.get(frame.name)
        if self._received > 2 * self._limits.tool_calls or spec is None or not spec.needs_approval:
            raise SandboxError("the worker reported a call of a tool that it should not report")
        if isinstance(self._host, AnnouncedTools):
            with contextlib.suppress(ToolError):  # the call itself reports it
                self._host.announce(frame.name, parse_arguments(frame.arguments))

    async def _answer(self, frame: ToolCallFrame) -> None:
        try:
            outcome = await self._outcome(frame)
        except ToolError as error:
            outcome = CallOutcome(False, str(error)[:MAX_ERROR_CHARS])
        value = outcome.value if outcome.ok else json.dumps(outcome.value)
        answer = {"op": "tool_result", "id": frame.id, "ok": outcome.ok, "value": value}
        try:
            await self._send({**answer, "denied": True} if outcome.denied else answer)
        except SandboxError:
            return  # the flush reports it

    async def _outcome(self, frame: ToolCallFrame) -> CallOutcome:
        spec = self._specs.get(frame.name)
        if spec is None:
            raise ToolError(f"there is no tool {frame.name[:64]!r}")
        arguments = parse_arguments(frame.arguments)
        key = json.dumps(arguments, sort_keys=True)
        earlier = [entry for entry in self._journal if entry.attempt < frame.attempt]
        for entry in earlier:
            if (entry.name, entry.arguments) == (spec.name, key):
                entry.attempt = frame.attempt
                return await asyncio.shield(entry.task)
        if not spec.read_only and any(entry.has_effects for entry in earlier):
            raise ToolError("the code ran again and made different calls: this call was not made")
        task = self._start(self._call(spec, arguments))
        self._journal.append(_JournalEntry(spec.name, key, not spec.read_only, task, frame.attempt))
        return await asyncio.shield(task)

    async def _call(self, spec: ToolSpec, arguments: dict[str, Any]) -> CallOutcome:
        prefix = CODE_CALL_PREFIX if spec.by_client else "call_"
        return await run_tool(self._host, spec.name, arguments, f"{prefix}{secrets.token_hex(12)}")

    def _start(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def end_flush(self) -> None:
        """Forget the calls of a flush that has ended, and cancel those that are still running."""
        self._journal, self._received, self.flushing = [], 0, False
        self.close()

    def close(self) -> None:
        """Cancel all calls."""
        self._batch = []
        for task in self._tasks:
            task.cancel()


def _runs_ahead(spec: ToolSpec) -> bool:
    """Return whether a tool may be called before the flush."""
    return spec.read_only and not (spec.by_client or spec.needs_approval)


async def run_tool(host: ToolHost, name: str, arguments: dict[str, Any], call_id: str) -> CallOutcome:
    """Call a tool."""
    try:
        return CallOutcome(True, encode_result(await host.call(name, arguments, call_id)))
    except ToolError as error:
        return CallOutcome(False, str(error)[:MAX_ERROR_CHARS], isinstance(error, ToolDeniedError))
    except Exception as error:  # a bug in a host must not end the episode
        _log_failure(name, error)
        return CallOutcome(False, f"the tool failed: {type(error).__name__}")


def _log_failure(name: str, error: Exception) -> None:
    """Log a bug in a host, without the message and local variables, which may hold credentials."""
    _log.error(
        "tool_failed",
        tool=name,
        error=type(error).__name__,
        traceback="".join(traceback.format_tb(error.__traceback__)),
    )


def parse_arguments(text: str) -> dict[str, Any]:
    """Parse the arguments of a call. Code may have written anything.

    Raises:
        ToolError: they are not a JSON object, are nested too deeply for other programs, or contain a lone
            surrogate, which clients can't encode.
    """

    def reject(name: str) -> NoReturn:
        raise ValueError(f"{name} is not a JSON number")

    try:
        arguments = json.loads(text, parse_constant=reject, parse_float=_finite)
    except (ValueError, RecursionError):
        raise ToolError("the arguments are not valid JSON") from None
    if not isinstance(arguments, dict):
        raise ToolError("the arguments are not a JSON object")
    if _is_deeper(arguments, MAX_JSON_DEPTH):
        raise ToolError(f"the arguments are nested more than {MAX_JSON_DEPTH} levels deep")
    try:
        json.dumps(arguments, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ToolError("the arguments have a lone surrogate, which is not valid Unicode") from None
    return arguments


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:32]} is too large")
    return value


def _is_deeper(value: object, depth: int) -> bool:
    """Return whether a JSON value has objects and lists on more than ``depth`` levels."""
    level = [value]
    for _ in range(depth + 1):
        containers = [item for item in level if isinstance(item, dict | list)]
        if not containers:
            return False
        level = [part for item in containers for part in (item.values() if isinstance(item, dict) else item)]
    return True


def encode_result(result: object) -> str:
    """Return a result as JSON.

    Raises:
        ToolError: it is too large, nested too deeply, or not a JSON value.
    """
    try:
        text = json.dumps(result, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ToolError("the tool returned something that is not JSON") from None
    if len(text) > MAX_RESULT_BYTES:
        raise ToolError(f"the result has {len(text)} bytes; at most {MAX_RESULT_BYTES} are passed on")
    if _is_deeper(result, MAX_JSON_DEPTH):
        raise ToolError(f"the result is nested more than {MAX_JSON_DEPTH} levels deep")
    return text
