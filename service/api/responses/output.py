"""Build the output items of a response, and the stream events that report their progress.

A flush is one ``code_interpreter_call``, which opens when its first block becomes pending.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from service.api.chat.choice_builder import content_path, executed_tool, logprob_item
from service.api.responses.items import output_item_id
from service.api.tools.custom import input_of
from service.common.json import Json, dumps
from service.engines.base import Tokenizer
from service.episode.accumulator import ReplyAccumulator, ReplyPart, Usage
from service.episode.events import (
    CodeToolCall,
    EpisodeEvent,
    ExecutedTool,
    Finished,
    FlushFinished,
    FlushStarted,
    Invoked,
    InvokedBlock,
    LiveOutput,
    Sampled,
    ToolCalled,
)
from service.episode.reasoning_parser import ReasoningDelta
from service.episode.tool_parser import ArgumentsDelta, CallFailed, TextDelta, ToolCallEnd, ToolCallStart
from service.sandbox.base import OutputChunk, OutputFile, Status
from service.tools.mcp.hub import Listing, SessionTools

Events = list[Json]


class OutputItem(Protocol):
    """An output item in progress."""

    def close(self, status: str) -> Events:
        """Close the item with ``status`` completed or incomplete."""
        ...


@dataclass(slots=True)
class Output:
    """All items so far, in the form of the response object."""

    response_id: str
    items: list[Json] = field(default_factory=list)

    def open(self, kind: str, item: Json) -> tuple[int, str]:
        """Append an item and return its index and id."""
        index = len(self.items)
        item_id = output_item_id(kind, self.response_id, index)
        self.items.append({"id": item_id, **item})
        return index, item_id

    def added(self, index: int) -> Json:
        """Return the event that announces item ``index``."""
        return {"type": "response.output_item.added", "output_index": index, "item": dict(self.items[index])}

    def done(self, index: int, **final: object) -> Json:
        """Update item ``index`` with its final fields and return the event that it is done."""
        self.items[index] = {**self.items[index], **final}
        return {"type": "response.output_item.done", "output_index": index, "item": dict(self.items[index])}


class TextItem:
    """A message or a thought: one text part that grows."""

    def __init__(
        self,
        output: Output,
        *,
        thought: bool,
        logprobs: bool = False,
        seal: Callable[[str], str] | None = None,
    ) -> None:
        self.thought = thought
        self._output = output
        self._pieces: list[str] = []
        self._logprobs: list[Json] = []
        self._wants_logprobs = logprobs
        self._seal = seal if thought else None
        self._annotations: list[Json] = []
        self._name = "response.reasoning_text" if thought else "response.output_text"
        head: Json = {"type": "reasoning", "summary": []} if thought else {"type": "message"}
        role: Json = {} if thought else {"role": "assistant"}
        self._index, self._id = output.open(
            "rs" if thought else "msg", {**head, "status": "in_progress", "content": [], **role}
        )

    def open(self) -> Events:
        return [
            self._output.added(self._index),
            self._event("response.content_part.added", part=self._part("")),
        ]

    def write(self, text: str, logprobs: list[Json]) -> Events:
        """Add text, and the log-probabilities of its tokens if they were requested."""
        self._pieces.append(text)
        self._logprobs += logprobs
        extra: Json = {} if self.thought else {"logprobs": logprobs}
        return [self._event(f"{self._name}.delta", delta=text, **extra)]

    def close(self, status: str) -> Events:
        text = "".join(self._pieces)
        cited = [
            self._event(
                "response.output_text.annotation.added", annotation=annotation, annotation_index=index
            )
            for index, annotation in enumerate(self._annotations)
        ]
        part = self._part(text)
        extra: Json = {} if self.thought else {"logprobs": self._logprobs}
        sealed: Json = {} if self._seal is None else {"encrypted_content": self._seal(text)}
        return [
            *cited,
            self._event(f"{self._name}.done", text=text, **extra),
            self._event("response.content_part.done", part=part),
            self._output.done(self._index, status=status, content=[part], **sealed),
        ]

    def cite(self, files: Sequence[OutputFile]) -> None:
        """Annotate the text with ``files``, where it names them, else at its end."""
        text = "".join(self._pieces)
        for file in files:
            filename = file.path.rpartition("/")[2]
            start = next((at for name in (file.path, filename) if (at := text.find(name)) >= 0), len(text))
            named = file.path if text.startswith(file.path, start) else filename
            self._annotations.append(
                {
                    "type": "container_file_citation",
                    "container_id": file.container_id,
                    "file_id": file.id,
                    "filename": filename,
                    "start_index": start,
                    "end_index": start + len(named) if start < len(text) else start,
                }
            )

    def _part(self, text: str) -> Json:
        if self.thought:
            return {"type": "reasoning_text", "text": text}
        return {
            "type": "output_text",
            "text": text,
            "annotations": list(self._annotations),
            "logprobs": list(self._logprobs) if self._wants_logprobs else [],
        }

    def _event(self, event_type: str, **fields: object) -> Json:
        return {
            "type": event_type,
            "item_id": self._id,
            "output_index": self._index,
            "content_index": 0,
            **fields,
        }


class FunctionCallItem:
    """A call of one of the client's functions."""

    def __init__(self, output: Output, name: str, call_id: str) -> None:
        self._output = output
        self._name = name
        self._pieces: list[str] = []
        self._index, self._id = output.open(
            "fc",
            {
                "type": "function_call",
                "status": "in_progress",
                "call_id": call_id,
                "name": name,
                "arguments": "",
            },
        )

    def open(self) -> Events:
        return [self._output.added(self._index)]

    def write(self, text: str) -> Events:
        """Add to the arguments."""
        self._pieces.append(text)
        return [self._event("response.function_call_arguments.delta", delta=text)]

    def close(self, status: str) -> Events:
        arguments = "".join(self._pieces)
        return [
            self._event("response.function_call_arguments.done", name=self._name, arguments=arguments),
            self._output.done(self._index, status=status, arguments=arguments),
        ]

    def _event(self, event_type: str, **fields: object) -> Json:
        return {"type": event_type, "item_id": self._id, "output_index": self._index, **fields}


class CustomCallItem(FunctionCallItem):
    """A call of a tool that takes free text. The input is decoded at the end, from the arguments."""

    def __init__(self, output: Output, name: str, call_id: str) -> None:
        self._output = output
        self._name = name
        self._pieces: list[str] = []
        self._index, self._id = output.open(
            "ctc",
            {
                "type": "custom_tool_call",
                "status": "in_progress",
                "call_id": call_id,
                "name": name,
                "input": "",
            },
        )

    def write(self, text: str) -> Events:
        """Add to the arguments."""
        self._pieces.append(text)
        return []

    def close(self, status: str) -> Events:
        text = input_of("".join(self._pieces))
        return [
            self._event("response.custom_tool_call_input.delta", delta=text),
            self._event("response.custom_tool_call_input.done", input=text),
            self._output.done(self._index, status=status, input=text),
        ]


_STATUSES: dict[Status, str] = {
    "ok": "completed",
    "error": "completed",  # the interpreter worked: the traceback is its output
    "output_limit": "completed",
    "timeout": "failed",
    "oom": "failed",
    "sandbox_error": "failed",
}


class CodeItem:
    """The blocks that one flush runs as one script.

    The events have OpenAI's names: ``in_progress`` when the first block is pending, ``code.delta`` for each
    block, at the flush ``code.done`` and ``interpreting``, and ``completed`` when the output is there. Runs
    of blocks in the background before the flush are not reported, because their effects are not visible yet.

    Args:
        output: the response's items.
        container: name of the episode's container; empty if not known yet.
    """

    def __init__(self, output: Output, container: str) -> None:
        self._output = output
        self._code = ""
        self._flushed = False
        self._index, self._id = output.open(
            "ci",
            {
                "type": "code_interpreter_call",
                "status": "in_progress",
                "code": "",
                "container_id": container,
                "outputs": None,
            },
        )

    def open(self) -> Events:
        return [self._output.added(self._index), self._event("response.code_interpreter_call.in_progress")]

    def add(self, block: InvokedBlock) -> Events:
        """Add a pending block."""
        piece = f"\n{block.code}" if self._code else block.code
        self._code += piece
        return [self._event("response.code_interpreter_call_code.delta", delta=piece)]

    def flush(self) -> Events:
        """Start the flush."""
        self._flushed = True
        return [self._code_done(), self._event("response.code_interpreter_call.interpreting")]

    def show(self, chunk: OutputChunk) -> Events:
        """Report what the code has written so far. OpenAI has no such event, so its name has a prefix."""
        return [
            self._event(
                "ih_grpo:code_interpreter_call_output.delta",
                stream=chunk.stream,
                delta=chunk.text,
                attempt=chunk.attempt,
                truncated=chunk.truncated,
            )
        ]

    def finish(self, tool: ExecutedTool, container: str, base_url: str = "") -> Events:
        """Add the output. The item's status reports the code's success; the call itself is completed.

        Args:
            tool: the flush.
            container: name of its container.
            base_url: address of this server, for links to figures.
        """
        logs: Json = {"type": "logs", "logs": tool.output}
        outputs = [logs]
        if tool.files is not None:
            if tool.files.tables:
                logs["tables"] = list(tool.files.tables)
            outputs += [
                {"type": "image", "url": base_url.rstrip("/") + content_path(file)}
                for file in tool.files.files
                if file.media_type.startswith("image/")
            ]
        return [
            self._event("response.code_interpreter_call.completed"),
            self._output.done(
                self._index,
                status=_STATUSES[tool.status],
                code=self._code,
                container_id=container,
                outputs=outputs,
                execution=executed_tool(tool, self._index),
            ),
        ]

    def close(self, status: str) -> Events:  # noqa: ARG002  always incomplete: it has no output
        """Close a call whose output never arrived, or was never requested."""
        done = [] if self._flushed else [self._code_done()]
        return [*done, self._output.done(self._index, status="incomplete", code=self._code)]

    def _code_done(self) -> Json:
        return self._event("response.code_interpreter_call_code.done", code=self._code)

    def _event(self, name: str, **fields: object) -> Json:
        return {"type": name, "item_id": self._id, "output_index": self._index, **fields}


class McpCallItem:
    """A call of a tool of an MCP server by code."""

    def __init__(self, output: Output, call: CodeToolCall, label: str, name: str) -> None:
        self._output = output
        self._arguments = dumps(call.arguments).decode()
        self._index, self._id = output.open(
            "mcp",
            {
                "type": "mcp_call",
                "status": "in_progress",
                "server_label": label,
                "name": name,
                "arguments": "",
                "output": None,
                "error": None,
                "approval_request_id": None,
            },
        )

    def open(self) -> Events:
        return [
            self._output.added(self._index),
            self._event("response.mcp_call.in_progress"),
            self._event("response.mcp_call_arguments.delta", delta=self._arguments),
            self._event("response.mcp_call_arguments.done", arguments=self._arguments),
        ]

    def finish(self, call: CodeToolCall) -> Events:
        """Add the result, or the error. A result that is not text is JSON."""
        failed = call.status != "ok"
        text = call.output if isinstance(call.output, str) else dumps(call.output).decode()
        return [
            self._event("response.mcp_call.failed" if failed else "response.mcp_call.completed"),
            self._output.done(
                self._index,
                status="failed" if failed else "completed",
                arguments=self._arguments,
                output=None if failed else text,
                error={"type": "mcp_tool_execution_error", "content": call.error} if failed else None,
            ),
        ]

    def close(self, status: str) -> Events:  # noqa: ARG002  always incomplete: it has no output
        """Close a call whose result never arrived."""
        return [self._output.done(self._index, status="incomplete", arguments=self._arguments)]

    def _event(self, event_type: str, **fields: object) -> Json:
        return {"type": event_type, "item_id": self._id, "output_index": self._index, **fields}


def list_tools_events(output: Output, listing: Listing) -> Events:
    """Add the tools of an MCP server as an item, and return its events."""
    index, item_id = output.open(
        "mcpl",
        {"type": "mcp_list_tools", "server_label": listing.label, "tools": [], "error": None},
    )
    name = "response.mcp_list_tools"
    place: Json = {"item_id": item_id, "output_index": index}
    tools: list[Json] = [
        {
            "name": tool.name,
            "description": tool.description,
            "input_schema": tool.input_schema,
            "annotations": tool.annotations,
        }
        for tool in listing.tools
    ]
    return [
        output.added(index),
        {"type": f"{name}.in_progress", **place},
        {"type": f"{name}.completed", **place},
        output.done(index, tools=tools),
    ]


class OutputBuilder:
    """Builder of a response's output items and stream events, from the events of its episode.

    A turn is one message (or one thought), with its code as the model wrote it; a flush is one
    ``code_interpreter_call``. The execute marker and the observation belong to the call and appear in no
    message. If nothing was pending, there is no call and both stay text.

    Args:
        response_id: id of the response.
        reply: accumulates the episode's events, with the execute marker hidden if code may run.
        tokenizer: decodes tokens for log-probabilities; None if they were not requested.
        seal: seals thoughts for the client to keep; None if it didn't ask for that.
        tools: tools of MCP servers that code may call.
        custom: names of tools that take free text.
        base_url: address of this server, for links to files.
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
    ) -> None:
        self._base_url = base_url
        self._files: list[OutputFile] = []
        """Files of the flushes since the last message, which the next one cites."""
        self.output = Output(response_id)
        self._custom = custom
        self.reply = reply
        self._tokenizer = tokenizer
        self._seal = seal
        self._logprobs: list[Json] = []
        """Of tokens whose text is still held back."""
        self._text: TextItem | None = None
        self._call: FunctionCallItem | None = None
        self._code: CodeItem | None = None
        self._container = ""
        self._tools = tools
        self._mcp_calls: dict[str, McpCallItem] = {}
        """Calls of MCP tools that have not ended."""

    def begin(self) -> Events:
        """Add the items that precede the reply, and return their events."""
        listings = () if self._tools is None else self._tools.listings
        return [event for listing in listings for event in list_tools_events(self.output, listing)]

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
            case Invoked(_, _, block):
                if self._code is None:
                    self._code = CodeItem(self.output, self._container)
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
            case Finished(outcome):
                events += self._close("incomplete" if outcome.is_truncated else "completed")
        return events

    def _add_call(self, call: CodeToolCall) -> Events:
        """Add a call of a tool by code, or its end."""
        if self._tools is None:
            return []
        if call.status == "running":
            label, name = self._tools.origins[call.name]
            item = self._mcp_calls[call.id] = McpCallItem(self.output, call, label, name)
            return item.open()
        return self._mcp_calls.pop(call.id).finish(call)

    def abandon(self) -> Events:
        """End a response that was interrupted and return the events that close its items."""
        return [*self._add_parts(self.reply.abandon()), *self._close("incomplete")]

    def _close(self, status: str) -> Events:
        events = self._close_text(status)
        for item in (self._call, self._code, *self._mcp_calls.values()):
            if item is not None:
                events += item.close("incomplete")
        self._call, self._code, self._mcp_calls = None, None, {}
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
                    events += self._close_text("completed")
                    kind = CustomCallItem if name in self._custom else FunctionCallItem
                    self._call = kind(self.output, name, f"call_{secrets.token_hex(12)}")
                    events += self._call.open()
                case ArgumentsDelta(_, text):
                    assert self._call is not None  # noqa: S101
                    events += self._call.write(text)
                case ToolCallEnd() | CallFailed():
                    assert self._call is not None  # noqa: S101
                    failed = isinstance(part, CallFailed)
                    events += self._call.close("incomplete" if failed else "completed")
                    self._call = None
        return events

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
