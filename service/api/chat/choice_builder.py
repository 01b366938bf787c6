"""Build one choice of a chat completion, whole or as streamed deltas, from the events of its episode.

``executed_tools`` shows deferred calls to clients; the name follows Groq's. They are never put into
``tool_calls``, because clients would run the code themselves.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from service.api.files.containers import ContainerUse
from service.api.tools.custom import input_of
from service.api.tools.history import EarlierCall
from service.common.json import Json, dumps
from service.engines.base import TokenChunk, Tokenizer
from service.episode.accumulator import ReplyAccumulator, ReplyPart, Usage
from service.episode.events import (
    ApprovalChanged,
    CodeToolCall,
    EpisodeEvent,
    ExecutedTool,
    Finished,
    FlushFinished,
    FlushStarted,
    FlushSuspended,
    Invoked,
    InvokedBlock,
    LiveOutput,
    Sampled,
)
from service.episode.reasoning_parser import ReasoningDelta
from service.episode.tool_parser import ArgumentsDelta, CallFailed, TextDelta, ToolCallEnd, ToolCallStart
from service.sandbox.base import FlushFiles, OutputFile
from service.tools.approval import ApprovalRequest
from service.tools.mcp.hub import SessionTools

Fields = dict[str, Any]
"""Fields of a message, or of a streamed delta."""


@dataclass(slots=True)
class ChoiceDelta:
    """Addition of one event to a streamed choice."""

    delta: Json
    logprobs: Json | None = None
    finish_reason: str | None = None

    @property
    def only_content(self) -> object:
        """The text, if the delta adds nothing else; otherwise None."""
        is_bare = self.logprobs is None and self.finish_reason is None and len(self.delta) == 1
        return self.delta.get("content") if is_bare else None


class ChoiceBuilder:
    """Builder of one choice.

    A streamed ``executed_tools`` entry is a snapshot: the last one with an ``id`` is valid. Each has its own
    ``index``, because the SDK's accumulator joins the strings of entries that share one.

    Args:
        index: index of the choice.
        reply: accumulates the choice's events.
        tokenizer: decodes tokens for log-probabilities; None if they were not requested.
        custom: names of tools that take free text. A stream reports their calls whole.
        container: the reply's container, if it lives across requests.
        tools: tools that code may call.
    """

    def __init__(
        self,
        index: int,
        reply: ReplyAccumulator,
        tokenizer: Tokenizer | None = None,
        custom: Collection[str] = (),
        container: ContainerUse | None = None,
        tools: SessionTools | None = None,
    ) -> None:
        self._tools = tools
        self._earlier = len(reply.executed), reply.finished_calls
        """Flushes and calls in earlier messages of the reply."""
        self._waiting: list[Fields] = []
        """The flush whose code waits for the client."""
        self.index = index
        self.reply = reply
        self._tokenizer = tokenizer
        self._custom = custom
        self._container = container
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[Fields] = []
        self._arguments: list[list[str]] = []
        self._logprobs: list[Json] = []
        self._snapshots = 0
        self._live_chunks = 0

    @property
    def content(self) -> str:
        """Text of the message."""
        return "".join(self._content)

    @property
    def calls(self) -> list[EarlierCall]:
        """Calls of the client's functions."""
        return [
            EarlierCall(call["id"], call["name"], "".join(arguments))
            for call, arguments in zip(self._calls, self._arguments, strict=True)
        ]

    @property
    def is_suspended(self) -> bool:
        """Whether the reply continues when the client has answered the calls of code."""
        return bool(self._waiting)

    @property
    def finish_reason(self) -> str:
        """``length``, ``tool_calls`` or ``stop``."""
        if self.reply.outcome is not None and self.reply.outcome.is_truncated:
            return "length"
        called = self.is_suspended or self.reply.finished_calls > self._earlier[1]
        return "tool_calls" if called else "stop"

    def add(self, event: EpisodeEvent) -> ChoiceDelta | None:
        """Add ``event`` and return its delta; None if it adds nothing to the stream.

        Raises:
            CallError: the model wrote an invalid call, and the request wants an error in that case.
        """
        parts = self.reply.add(event)
        delta = self._delta(parts) if parts else {}
        if isinstance(event, Sampled):
            logprobs = None
            if self._tokenizer is not None:
                logprobs = self._chunk_logprobs(event.chunk, self._tokenizer)
            return ChoiceDelta(delta, logprobs) if delta or logprobs else None
        match event:
            case Invoked(tool_id):
                pending = self.reply.pending
                delta["executed_tools"] = [waiting_tool(tool_id, self._snapshot(), pending, "pending")]
            case FlushStarted(tool_id, blocks):
                delta["executed_tools"] = [waiting_tool(tool_id, self._snapshot(), blocks, "running")]
            case LiveOutput():
                delta["live_output"] = [live_output(event, self._live_chunks)]
                self._live_chunks += 1
            case FlushFinished(tool):
                delta["executed_tools"] = [executed_tool(tool, self._snapshot())]
            case ApprovalChanged(asked) if self._tools is not None:
                delta["approval_requests"] = [approval_json(asked, self._tools)]
            case FlushSuspended(tool_id, blocks, calls):
                self._waiting = [waiting_tool(tool_id, self._snapshot(), blocks, "suspended")]
                added = [self._code_call(call) for call in calls]
                delta |= {"executed_tools": self._waiting, "tool_calls": added}
                return ChoiceDelta(delta, finish_reason=self.finish_reason)
            case Finished(_, unflushed):
                if unflushed:
                    delta["unflushed_blocks"] = [block_json(block) for block in unflushed]
                delta["final_answer"] = self.reply.final_answer
                if self._container is not None:
                    delta["container"] = self._container.id
                    if self._container.notice is not None:
                        delta["notice"] = self._container.notice
                return ChoiceDelta(delta, finish_reason=self.finish_reason)
        return ChoiceDelta(delta) if delta else None

    def choice(self) -> Json:
        """Return the whole choice."""
        logprobs = None if self._tokenizer is None else {"content": self._logprobs, "refusal": None}
        return {
            "index": self.index,
            "message": self.message(),
            "logprobs": logprobs,
            "finish_reason": self.finish_reason,
        }

    def message(self) -> Json:
        """Return the whole message. Lists of executed and unflushed code are left out if empty."""
        content = self.content
        message: Fields = {"role": "assistant", "content": content, "refusal": None}
        if reasoning := "".join(self._reasoning):
            # Clients differ in which of the two names they read.
            message |= {"reasoning": reasoning, "reasoning_content": reasoning}
        if self._calls:
            message["content"] = content or None
            message["tool_calls"] = [
                self._custom_call(call)
                if call.name in self._custom
                else {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.calls
            ]
        message["final_answer"] = self.reply.final_answer
        if self._container is not None:
            message["container"] = self._container.id
        executed = [
            executed_tool(tool, index) for index, tool in enumerate(self.reply.executed[self._earlier[0] :])
        ]
        if executed or self._waiting:
            message["executed_tools"] = [
                *executed,
                *({**tool, "index": len(executed)} for tool in self._waiting),
            ]
        if self.reply.unflushed:
            message["unflushed_blocks"] = [block_json(block) for block in self.reply.unflushed]
        return message

    def _delta(self, parts: Sequence[ReplyPart]) -> Fields:
        delta: Fields = {}
        for part in parts:
            match part:
                case TextDelta(text):
                    self._content.append(text)
                    delta["content"] = delta.get("content", "") + text
                case ReasoningDelta(text):
                    self._reasoning.append(text)
                    delta["reasoning"] = delta["reasoning_content"] = delta.get("reasoning", "") + text
                case ToolCallStart(index, name):
                    call = {"id": f"call_{secrets.token_hex(12)}", "name": name}
                    self._calls.append(call)
                    self._arguments.append([])
                    if name in self._custom:
                        continue
                    function = {"name": name, "arguments": ""}
                    delta.setdefault("tool_calls", []).append(
                        {"index": index, "id": call["id"], "type": "function", "function": function}
                    )
                case ArgumentsDelta(index, text):
                    self._arguments[index].append(text)
                    if self._calls[index]["name"] in self._custom:
                        continue
                    _append_arguments(delta.setdefault("tool_calls", []), index, text)
                case ToolCallEnd(index):
                    call_at_end = self.calls[index]
                    if call_at_end.name in self._custom:
                        entry = {"index": index, **self._custom_call(call_at_end)}
                        delta.setdefault("tool_calls", []).append(entry)
                case CallFailed():
                    self._calls.pop()
                    self._arguments.pop()
        return delta

    def _code_call(self, call: CodeToolCall) -> Fields:
        """Add a call of code and return it for a delta."""
        assert self._tools is not None  # noqa: S101  (code calls them)
        function = {"name": self._tools.client.names[call.name], "arguments": dumps(call.arguments).decode()}
        self._calls.append({"id": call.id, "name": function["name"]})
        self._arguments.append([function["arguments"]])
        index = len(self._calls) - 1
        return {"index": index, "id": call.id, "type": "function", "function": function}

    def _custom_call(self, call: EarlierCall) -> Fields:
        custom = {"name": call.name, "input": input_of(call.arguments)}
        return {"id": call.id, "type": "custom", "custom": custom}

    def _chunk_logprobs(self, chunk: TokenChunk, tokenizer: Tokenizer) -> Json | None:
        items = [logprob_item(chunk, at, tokenizer) for at in range(self.reply.shown_tokens)]
        self._logprobs += items
        return {"content": items, "refusal": None} if items else None

    def _snapshot(self) -> int:
        """Return the index of the next snapshot of a flush."""
        self._snapshots += 1
        return self._snapshots - 1


def _append_arguments(calls: list[Fields], index: int, text: str) -> None:
    """Keep one entry per call and delta: SDKs join entries of different deltas, not of the same one."""
    if calls and calls[-1]["index"] == index:
        calls[-1]["function"]["arguments"] += text
    else:
        calls.append({"index": index, "function": {"arguments": text}})


def chat_usage(usage: Usage) -> Json:
    """Return OpenAI's usage object. Observation tokens count as completion tokens and are listed apart."""
    body: Json = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "observation_tokens": usage.observation_tokens,
        },
    }
    if usage.cached_tokens is not None:
        body["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    return body


def executed_tool(tool: ExecutedTool, index: int) -> Json:
    """Return a finished flush. Times in ``_at`` fields are Unix seconds, in ``_ms`` fields milliseconds."""
    return {
        **waiting_tool(tool.id, index, tool.blocks, tool.status),
        "output": tool.output,
        "delayed": tool.delayed,
        "requested_by": tool.requested_by,
        "flushed_at": tool.flushed_at,
        "started_at": tool.started_at,
        "finished_at": tool.finished_at,
        "runs": [{"started_at": start, "finished_at": end} for start, end in tool.runs],
        "wall_ms": round(tool.wall_ms, 3),
        "waited_ms": round(tool.waited_ms, 3),
        "hidden_ms": round(tool.hidden_ms, 3),
        "container_wait_ms": round(tool.container_wait_ms, 3),
        "eager_fallback": tool.eager_fallback,
        **(
            {"pauses": [{"started_at": start, "finished_at": end} for start, end in tool.pauses]}
            if tool.pauses
            else {}
        ),
        **({} if tool.files is None else flush_files(tool.files)),
        **({"calls": [called_tool(call) for call in tool.calls]} if tool.calls else {}),
    }


def live_output(event: LiveOutput, index: int) -> Json:
    """Return output of a running flush. It has its own ``index``, as a snapshot has."""
    chunk = event.chunk
    return {
        "index": index,
        "id": event.tool_id,
        "stream": chunk.stream,
        "text": chunk.text,
        "attempt": chunk.attempt,
        "truncated": chunk.truncated,
    }


def called_tool(call: CodeToolCall) -> Json:
    """Return a call of a tool by code. The model may not have seen its result."""
    return {
        "id": call.id,
        "name": call.name,
        "arguments": call.arguments,
        "status": call.status,
        "read_only": call.read_only,
        "started_at": call.started_at,
        "finished_at": call.finished_at,
        "output": call.output,
        "error": call.error,
        **({"by_client": True} if call.by_client else {}),
    }


def approval_json(request: ApprovalRequest, tools: SessionTools) -> Json:
    """Return a request for approval. Times are Unix seconds."""
    label, name = tools.origins[request.name]
    status = {None: "open", True: "approved", False: "denied"}[request.approve]
    return {
        "id": request.id,
        "object": "approval_request",
        "server_label": label,
        "name": name,
        "arguments": request.arguments,
        "status": status,
        "reason": request.reason,
        "decided_by": request.decided_by,
        "requested_at": request.requested_at,
        "decided_at": request.decided_at,
    }


def flush_files(found: FlushFiles) -> Json:
    """Return the files and displays of a flush. URLs are relative to the server's address."""
    return {
        "files": [
            {
                "id": file.id,
                "container_id": file.container_id,
                "path": file.path,
                "bytes": file.size,
                "sha256": file.sha256,
                "media_type": file.media_type,
                "url": content_path(file),
            }
            for file in found.files
        ],
        "tables": list(found.tables),
        "skipped_files": [{"path": path, "reason": reason} for path, reason in found.skipped],
    }


def content_path(file: OutputFile) -> str:
    """Return the path of a file's content in this API."""
    return f"/v1/containers/{file.container_id}/files/{file.id}/content"


def waiting_tool(tool_id: str, index: int, blocks: Sequence[InvokedBlock], status: str) -> Json:
    """Return an upcoming flush: ``pending`` until the marker, then ``running`` until its result."""
    return {
        "index": index,
        "id": tool_id,
        "type": "python",
        "status": status,
        "blocks": [block_json(block) for block in blocks],
    }


def block_json(block: InvokedBlock) -> Json:
    """Return a block that the model closed; ``invoked_at`` in Unix seconds."""
    return {"code": block.code, "invoked_at_token": block.invoked_at_token, "invoked_at": block.invoked_at}


MIN_LOGPROB: Final = -9999.0
"""Substitute for minus infinity, which JSON can't express."""


def logprob_item(chunk: TokenChunk, at: int, tokenizer: Tokenizer) -> Json:
    """Return OpenAI's log-probability object of token ``at`` of ``chunk``, with its alternatives."""
    top = chunk.top_logprobs[at] if chunk.top_logprobs else ()
    return {
        **_token_logprob(chunk.ids[at], chunk.logprobs[at], tokenizer),
        "top_logprobs": [_token_logprob(item.token_id, item.logprob, tokenizer) for item in top],
    }


def _token_logprob(token_id: int, logprob: float, tokenizer: Tokenizer) -> Json:
    token = tokenizer.decode([token_id])
    # A token that holds part of a character decodes to a replacement character; its bytes are unknown.
    known = "\ufffd" not in token
    return {
        "token": token,
        "logprob": max(logprob, MIN_LOGPROB),
        "bytes": list(token.encode("utf-8", "surrogatepass")) if known else None,
    }
