"""Build the output items of a response, and the stream events that report their progress.

A flush is one ``code_interpreter_call``, which opens when its first block becomes pending.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence

from service.api.chat.choice_builder import logprob_item
from service.api.responses.output_items import (
    CodeItem,
    CustomCallItem,
    Events,
    FunctionCallItem,
    McpCallItem,
    Output,
    ProgramItem,
    TextItem,
    approval_events,
    list_tools_events,
)
from service.common.json import Json, dumps
from service.engines.base import Tokenizer
from service.episode.accumulator import ReplyAccumulator, ReplyPart, Usage
from service.episode.events import (
    ApprovalChanged,
    CodeToolCall,
    EpisodeEvent,
    Finished,
    FlushFinished,
    FlushStarted,
    FlushSuspended,
    Invoked,
    LiveOutput,
    Sampled,
    ToolCalled,
)
from service.episode.reasoning_parser import ReasoningDelta
from service.episode.tool_parser import ArgumentsDelta, CallFailed, TextDelta, ToolCallEnd, ToolCallStart
from service.sandbox.base import OutputFile
from service.tools.mcp.hub import SessionTools


class OutputBuilder:
    """Builder of a response's output items and stream events, from the events of its episode.

    A turn is one message (or one thought), with its code as the model wrote it; a flush is one
    ``code_interpreter_call``. The execute marker and the observation belong to the call and appear in no
    message. If nothing was pending, there is no call and both stay text.

    A call of a client's function is held back until it is complete, so that its arguments are valid JSON and
    a call that can't be parsed is text from its beginning. Only a call that a limit cut off has partial
    arguments.

    Args:
        response_id: id of the response.
        reply: accumulates the episode's events, with the execute marker hidden if code may run.
        tokenizer: decodes tokens for log-probabilities; None if they were not requested.
        seal: seals thoughts for the client to keep; None if it didn't ask for that.
        tools: tools of MCP servers that code may call.
        custom: names of tools that take free text.
        base_url: address of this server, for links to files.
        waiting: the flush with which the response begins, because it continues another one; None for a new
            reply.
        programs: show flushes in OpenAI's form for code that calls functions; see `ProgramItem`.
    """

    def __init__(
        self,
        response_id: str,
        reply: ReplyAccumulator,
        *,
        tokenizer: Tokenizer | None = None,
        seal: Callable[[str], str] | None = None,
        tools: SessionTools | None = None,
        custom: Collection[str] = (),
        base_url: str = "",
        waiting: FlushSuspended | None = None,
        programs: bool = False,
    ) -> None:
        self._programs = programs
        self._waiting = waiting
        self._base_url = base_url
        self._files: list[OutputFile] = []
        """Files of the flushes since the last message, which the next one cites."""
        self.output = Output(response_id)
        self._custom = custom
        self.reply = reply
        self._tokenizer = tokenizer
        self._seal = seal
        self._logprobs: list[Json] = []
        """Log-probs of tokens whose text is still held back."""
        self._text: TextItem | None = None
        self._call: str | None = None
        """Name of the function in an unfinished call."""
        self._arguments: list[str] = []
        self._code: CodeItem | ProgramItem | None = None
        self._container = ""
        self._tools = tools
        self._mcp_calls: dict[str, McpCallItem] = {}
        """Calls of MCP tools that have not ended."""

    def begin(self) -> Events:
        """Add the items that precede the reply, and return their events."""
        if self._waiting is not None:
            self._code = self._code_item(self._waiting.tool_id, is_continued=True)
            added = [event for block in self._waiting.blocks for event in self._code.add(block)]
            return [*self._code.open(), *added, *self._code.flush()]
        listings = () if self._tools is None else self._tools.listings
        return [event for listing in listings for event in list_tools_events(self.output, listing)]

    def _code_item(self, flush_id: str, *, is_continued: bool = False) -> CodeItem | ProgramItem:
        if self._programs:
            return ProgramItem(self.output, flush_id, is_continued=is_continued)
        return CodeItem(self.output, self._container)

    def add(self, event: EpisodeEvent) -> Events:
        """Add ``event`` and return its stream events, without sequence numbers.

        Raises:
            CallError: the model wrote an invalid call, and the request wants an error in that case.
        """
        parts = self.reply.add(event)
        if isinstance(event, Sampled) and self._tokenizer is not None:
            self._logprobs += [
                _with_bytes(logprob_item(event.chunk, at, self._tokenizer))
                for at in range(self.reply.shown_tokens)
            ]
        events = self._add_parts(parts) if parts else []
        match event:
            case Invoked(tool_id, _, block):
                if self._code is None:
                    self._code = self._code_item(tool_id)
                    events += self._code.open()
                events += self._code.add(block)
            case FlushStarted():
                assert self._code is not None  # noqa: S101  its blocks were invoked
                events += [*self._close_text("completed"), *self._code.flush()]
            case LiveOutput(_, chunk):
                assert self._code is not None  # noqa: S101
                events += self._code.show(chunk)
            case FlushFinished(tool):
                assert self._code is not None  # noqa: S101
                self._container = tool.container or ""
                events += self._code.finish(tool, self._container, self._base_url)
                self._code = None
                if tool.files is not None:
                    self._files += tool.files.files
            case ToolCalled(call):
                events += self._add_call(call)
            case ApprovalChanged(request) if self._tools is not None:
                events += approval_events(self.output, request, self._tools)
            case FlushSuspended(_, _, calls):
                events += self._suspend(calls)
            case Finished(outcome):
                events += self._close("incomplete" if outcome.is_truncated else "completed")
        return events

    def _suspend(self, calls: Sequence[CodeToolCall]) -> Events:
        """Add the calls of code that waits for the client."""
        assert self._code is not None and self._tools is not None  # noqa: S101, PT018
        events: Events = []
        caller: Json = {"type": "program", "caller_id": self._code.caller_id}
        for call in calls:
            item = FunctionCallItem(self.output, self._tools.client.names[call.name], call.id, caller)
            events += [*item.open(), *item.write(dumps(call.arguments).decode()), *item.close("completed")]
        events += self._code.suspend()
        self._code = None
        return events

    def _add_call(self, call: CodeToolCall) -> Events:
        """Add a call of a tool by code, or its end. Those for the client are added when the code waits."""
        if self._tools is None or call.by_client:
            return []
        if call.status == "running":
            label, name = self._tools.origins[call.name]
            item = self._mcp_calls[call.id] = McpCallItem(self.output, call, label, name)
            return item.open()
        return self._mcp_calls.pop(call.id).finish(call)

    def abandon(self) -> Events:
        """End a response that was interrupted and return the events that close its items."""
        self._call = None
        return [*self._add_parts(self.reply.abandon()), *self._close("incomplete")]

    def _close(self, status: str) -> Events:
        is_cut_off = self._call is not None
        events = self._client_call("incomplete") if is_cut_off else self._close_text(status)
        for item in (self._code, *self._mcp_calls.values()):
            if item is not None:
                events += item.close("incomplete")
        self._code, self._mcp_calls = None, {}
        if all(item["type"] == "mcp_list_tools" for item in self.output.items):  # an empty reply
            events += [*self._open_text(thought=False), *self._close_text(status)]
        return events

    def _add_parts(self, parts: Sequence[ReplyPart]) -> Events:
        events: Events = []
        for part in parts:
            match part:
                case TextDelta(text):
                    events += self._write(text, thought=False)
                case ReasoningDelta(text):
                    events += self._write(text, thought=True)
                case ToolCallStart(_, name):
                    self._call, self._arguments = name, []
                case ArgumentsDelta(_, text):
                    self._arguments.append(text)
                case ToolCallEnd():
                    events += self._client_call("completed")
                case CallFailed():
                    self._call = None
        return events

    def _client_call(self, status: str) -> Events:
        """Add the current call and return its events."""
        assert self._call is not None  # noqa: S101
        events = self._close_text("completed")
        kind = CustomCallItem if self._call in self._custom else FunctionCallItem
        item = kind(self.output, self._call, f"call_{secrets.token_hex(12)}")
        self._call = None
        events += item.open()
        if arguments := "".join(self._arguments):
            events += item.write(arguments)
        return [*events, *item.close(status)]

    def _write(self, text: str, *, thought: bool) -> Events:
        events: Events = []
        if self._text is not None and self._text.thought != thought:
            events += self._close_text("completed")
        if self._text is None:
            events += self._open_text(thought=thought)
        assert self._text is not None  # noqa: S101
        logprobs, self._logprobs = self._logprobs, []
        return [*events, *self._text.write(text, [] if thought else logprobs)]

    def _open_text(self, *, thought: bool) -> Events:
        has_logprobs = self._tokenizer is not None
        self._text = TextItem(self.output, thought=thought, logprobs=has_logprobs, seal=self._seal)
        return self._text.open()

    def _close_text(self, status: str) -> Events:
        text, self._text = self._text, None
        if text is None:
            return []
        if not text.thought:
            text.cite(self._files)
            self._files = []
        return text.close(status)


def response_usage(usage: Usage) -> Json:
    """Return OpenAI's usage object. Observation tokens count as output tokens and are listed apart."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens or 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "observation_tokens": usage.observation_tokens,
        },
        "total_tokens": usage.total_tokens,
    }


def _with_bytes(item: Json) -> Json:
    """Replace null by an empty list of bytes, as OpenAI's Responses types require."""
    alternatives: list[Json] = item["top_logprobs"]  # type: ignore[assignment]
    return {
        **item,
        "bytes": item["bytes"] or [],
        "top_logprobs": [{**other, "bytes": other["bytes"] or []} for other in alternatives],
    }
