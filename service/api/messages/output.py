"""Build the content blocks of a message, and the stream events that report their progress.

Blocks follow each other without overlap. A run of pending code is two blocks: ``server_tool_use`` with the
code and ``code_execution_tool_result`` with the output.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from pydantic_core import from_json

from service.api.files.containers import ContainerUse
from service.api.messages.blocks import CODE_EXECUTION
from service.common.json import Json, dumps, json_time
from service.deferral.episode import Outcome
from service.episode.accumulator import ReplyAccumulator, ReplyPart, Usage
from service.episode.events import (
    CodeToolCall,
    EpisodeEvent,
    ExecutedTool,
    Finished,
    FlushFinished,
    FlushStarted,
    FlushSuspended,
)
from service.episode.reasoning_parser import ReasoningDelta
from service.episode.tool_parser import (
    ArgumentsDelta,
    CallFailed,
    TextDelta,
    ToolCallEnd,
    ToolCallStart,
)
from service.sandbox.base import Status

Events = list[Json]

_KILLED: Final = 137
"""Return code of a process that was killed."""
_ERROR_CODES: Final[dict[Status, str]] = {
    "timeout": "execution_time_exceeded",
    "sandbox_error": "unavailable",
}
_RETURN_CODES: Final[dict[Status, int]] = {"error": 1, "oom": _KILLED}


class MessageBuilder:
    """Builder of a message, whole or as stream events, from the events of its episode.

    A call of a client's tool is held back until it is complete, so that its input is valid JSON and a call
    that can't be parsed is text from its beginning. Only a call that a limit cut off has a partial input.

    If code calls the client's tools, the message ends with these calls, and another message continues it.

    Args:
        message_id: id of the message.
        model: model name in the request.
        usage: returns the current token counts of the request.
        reply: accumulates the episode's events, with the execute marker hidden if code may run. It may
            contain those of earlier messages.
        seal: seals thoughts for the client to keep.
        max_tokens: the client's limit on sampled tokens.
        omits_thoughts: leave the text of thoughts out.
        stops: the client's stop strings.
        container: the reply's container, if it lives across requests.
        functions: name for the client and kind of caller of each tool that code may call, by the name in
            Python.
    """

    def __init__(
        self,
        message_id: str,
        model: str,
        usage: Callable[[], Usage],
        reply: ReplyAccumulator,
        *,
        seal: Callable[[str], str],
        max_tokens: int,
        omits_thoughts: bool = False,
        stops: Sequence[str] = (),
        container: ContainerUse | None = None,
        functions: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        self.reply = reply
        self.content: list[Json] = []
        """Finished blocks."""
        self.waits_s: float | None = None
        """Time that suspended code waits for the client, in seconds; None if no code waits."""
        self._head: Json = {"id": message_id, "type": "message", "role": "assistant", "model": model}
        self._current_usage = usage
        self._last_usage: Usage | None = None
        """Set when the episode is suspended: the next request may continue it at any time."""
        self._earlier_calls = reply.finished_calls
        self._seal = seal
        self._max_tokens = max_tokens
        self._omits_thoughts = omits_thoughts
        self._stops = stops
        self._container = container
        self._functions = functions or {}
        self._kind: str | None = None
        """Type of the open block, ``text`` or ``thinking``; None if none is open."""
        self._texts: list[str] = []
        self._call: str | None = None
        """Name of the tool in an unfinished call."""
        self._arguments: list[str] = []

    def start(self) -> Json:
        """Return the first event, with an empty message."""
        message: Json = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**self._usage(), "service_tier": "standard"},
        }
        return {"type": "message_start", "message": message}

    def add(self, event: EpisodeEvent) -> Events:
        """Add ``event`` and return its stream events."""
        events: Events = []
        for part in self.reply.add(event):
            events += self._add_part(part)
        match event:
            case FlushStarted(tool_id, blocks):
                code = "\n".join(block.code for block in blocks)
                block: Json = {"type": "server_tool_use", "id": _run_id(tool_id), "name": CODE_EXECUTION}
                events += [*self._close(), *self._tool_use(block, {"code": code})]
            case FlushSuspended(tool_id, _, calls):
                self._last_usage = self._current_usage()
                for call in calls:
                    events += self._code_call(_run_id(tool_id), call)
            case FlushFinished(tool):
                result: Json = {
                    "type": "code_execution_tool_result",
                    "tool_use_id": _run_id(tool.id),
                    "content": _result(tool),
                }
                events += self._whole(result, result)
            case Finished():
                events += self._close()
                if self._call is not None:  # cut off by a limit
                    events += self._client_call(_partial_input("".join(self._arguments)))
        return events

    def end(self) -> Events:
        """Return the last events."""
        delta: Json = {
            "stop_reason": self.stop_reason,
            "stop_sequence": self._stop_sequence,
            "final_answer": self.reply.final_answer,
            **self._container_fields(),
        }
        return [{"type": "message_delta", "delta": delta, "usage": self._usage()}, {"type": "message_stop"}]

    def message(self) -> Json:
        """Return the whole message."""
        return {
            **self._head,
            "content": self.content,
            "stop_reason": self.stop_reason,
            "stop_sequence": self._stop_sequence,
            "usage": {**self._usage(), "service_tier": "standard"},
            "final_answer": self.reply.final_answer,
            **self._container_fields(),
        }

    def _container_fields(self) -> Json:
        """Return the container that code ran in, and when it, or code that waits, ends without a request."""
        if self._container is None or not (self.reply.executed or self._is_suspended):
            return {}
        seconds = self._container.live.record.idle_minutes * 60 if self.waits_s is None else self.waits_s
        return {"container": {"id": self._container.id, "expires_at": json_time(time.time() + seconds)}}

    @property
    def _is_suspended(self) -> bool:
        return self._last_usage is not None

    @property
    def stop_reason(self) -> str:
        """Reason for the end of the reply, in Anthropic's words."""
        reply = self.reply
        if self._is_suspended:
            return "tool_use"
        if self._stop_sequence is not None:
            return "stop_sequence"
        if reply.outcome is Outcome.LENGTH and reply.sampled_tokens < self._max_tokens:
            return "model_context_window_exceeded"
        if reply.outcome is not None and reply.outcome.is_truncated:
            return "max_tokens"
        return "tool_use" if reply.finished_calls > self._earlier_calls else "end_turn"

    @property
    def _stop_sequence(self) -> str | None:
        return self.reply.stop_string if self.reply.stop_string in self._stops else None

    def _usage(self) -> Json:
        usage = self._last_usage or self._current_usage()
        cached = usage.cached_tokens or 0
        return {
            "input_tokens": usage.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {
                "thinking_tokens": usage.reasoning_tokens,
                "observation_tokens": usage.observation_tokens,
            },
        }

    def _add_part(self, part: ReplyPart) -> Events:
        match part:
            case TextDelta(text):
                return self._write("text", text)
            case ReasoningDelta(text):
                return self._write("thinking", text)
            case ToolCallStart(_, name):
                self._call, self._arguments = name, []
            case ArgumentsDelta(_, text):
                self._arguments.append(text)
            case ToolCallEnd():
                return self._client_call(_whole_input("".join(self._arguments)))
            case CallFailed():
                self._call = None
        return []

    def _write(self, kind: str, text: str) -> Events:
        events: Events = []
        if self._kind != kind:
            more: Json = {"signature": ""} if kind == "thinking" else {}
            events = [*self._close(), self._started({"type": kind, kind: "", **more})]
            self._kind = kind
        self._texts.append(text)
        if kind == "thinking" and self._omits_thoughts:
            return events
        return [*events, self._delta({"type": f"{kind}_delta", kind: text})]

    def _close(self) -> Events:
        """Finish the open block, if there is one."""
        kind, self._kind = self._kind, None
        if kind is None:
            return []
        text, self._texts = "".join(self._texts), []
        if kind == "text":
            return self._stopped({"type": "text", "text": text})
        signature = self._seal(text)
        signed = self._delta({"type": "signature_delta", "signature": signature})
        shown = "" if self._omits_thoughts else text
        return [signed, *self._stopped({"type": "thinking", "thinking": shown, "signature": signature})]

    def _client_call(self, arguments: object) -> Events:
        block: Json = {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": self._call}
        self._call = None
        return [*self._close(), *self._tool_use(block, arguments)]

    def _code_call(self, run_id: str, call: CodeToolCall) -> Events:
        """Return the events of a call that code waits for."""
        name, caller = self._functions[call.name]
        block: Json = {
            "type": "tool_use",
            "id": call.id,
            "name": name,
            "caller": {"type": caller, "tool_id": run_id},
        }
        return self._tool_use(block, _whole_input(json.dumps(call.arguments)))

    def _tool_use(self, block: Json, arguments: object) -> Events:
        """Return the events of a call with the input ``arguments``."""
        delta: Json = {"type": "input_json_delta", "partial_json": dumps(arguments).decode()}
        return self._whole({**block, "input": {}}, {**block, "input": arguments}, delta)

    def _whole(self, first: Json, last: Json, *deltas: Json) -> Events:
        """Return the events of a block that begins as ``first`` and ends as ``last``."""
        return [self._started(first), *(self._delta(delta) for delta in deltas), *self._stopped(last)]

    def _started(self, block: Json) -> Json:
        return {"type": "content_block_start", "index": len(self.content), "content_block": block}

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": len(self.content), "delta": delta}

    def _stopped(self, block: Json) -> Events:
        index = len(self.content)
        self.content.append(block)
        return [{"type": "content_block_stop", "index": index}]


def _run_id(tool_id: str) -> str:
    """Return the id of the ``server_tool_use`` block of a flush, which is the same in all its messages."""
    return f"srvtoolu_{hashlib.sha256(tool_id.encode()).hexdigest()[:24]}"


def _whole_input(written: str) -> object:
    """Return the input that the model wrote, without the values that clients can't parse.

    A number outside of the range of floats becomes the nearest one, and a lone surrogate a question mark.
    """
    text = json.dumps(json.loads(written, parse_float=_finite), ensure_ascii=False)
    return json.loads(text.encode("utf-8", "replace"))


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else math.copysign(sys.float_info.max, value)


def _partial_input(written: str) -> object:
    """Return the complete part of an input that a limit cut off; empty if its beginning is not JSON."""
    try:
        value = from_json(written or "{}", allow_partial=True, allow_inf_nan=False)
        return _whole_input(json.dumps(value, allow_nan=False))
    except ValueError:
        return {}


def _result(tool: ExecutedTool) -> Json:
    """Return the content of a result: the output that the model reads, or why there is none."""
    if (code := _ERROR_CODES.get(tool.status)) is not None:
        return {"type": "code_execution_tool_result_error", "error_code": code}
    failed = tool.status in _RETURN_CODES
    files = () if tool.files is None else tool.files.files
    return {
        "type": "code_execution_result",
        "stdout": "" if failed else tool.output,
        "stderr": tool.output if failed else "",
        "return_code": _RETURN_CODES.get(tool.status, 0),
        "content": [{"type": "code_execution_output", "file_id": file.id} for file in files],
    }
