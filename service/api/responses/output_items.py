"""Output items of a response in progress, and the stream events that report their progress."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from service.api.chat.choice_builder import content_path, executed_tool
from service.api.responses.items import output_item_id
from service.api.tools.custom import input_of
from service.common.json import Json, dumps
from service.episode.events import CodeToolCall, ExecutedTool, InvokedBlock
from service.sandbox.base import OutputChunk, OutputFile, Status
from service.tools.approval import ApprovalRequest
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

    def open(self, kind: str, item: Json, item_id: str | None = None) -> tuple[int, str]:
        """Append an item and return its index and id, by default one of its kind and place."""
        index = len(self.items)
        item_id = item_id or output_item_id(kind, self.response_id, index)
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
    """A call of one of the client's functions.

    Args:
        output: the response's items.
        name: the function.
        call_id: id of the call.
        caller: OpenAI's field for the origin of the call; None for the model.
    """

    def __init__(self, output: Output, name: str, call_id: str, caller: Json | None = None) -> None:
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
                **({} if caller is None else {"caller": caller}),
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

    @property
    def caller_id(self) -> str:
        """Id by which calls of the code name it."""
        return self._id

    def suspend(self) -> Events:
        """End the item in this response. Its code waits, and the next response has its output."""
        return [self._output.done(self._index, status="interpreting", code=self._code)]

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


class ProgramItem:
    """The blocks of a flush in OpenAI's form for code that calls functions: ``program``, and at the end
    ``program_output``. Used instead of `CodeItem` if the request has the tool ``programmatic_tool_calling``.

    Args:
        output: the response's items.
        flush_id: id of the flush, by which the two items and the calls of the code refer to each other.
        is_continued: the item is in an earlier response, which ended while the code waited.
    """

    def __init__(self, output: Output, flush_id: str, *, is_continued: bool = False) -> None:
        self._output = output
        self._is_done = is_continued
        self._code = ""
        self.caller_id = flush_id
        if not is_continued:
            self._index, _ = output.open(
                "prog", {"type": "program", "call_id": flush_id, "code": "", "fingerprint": ""}
            )

    def open(self) -> Events:
        return [] if self._is_done else [self._output.added(self._index)]

    def add(self, block: InvokedBlock) -> Events:
        """Add a pending block."""
        self._code += f"\n{block.code}" if self._code else block.code
        return []

    def flush(self) -> Events:
        """Start the flush."""
        if self._is_done:
            return []
        self._is_done = True
        fingerprint = hashlib.sha256(self._code.encode("utf-8", "backslashreplace")).hexdigest()[:16]
        return [self._output.done(self._index, code=self._code, fingerprint=fingerprint)]

    def suspend(self) -> Events:
        """End the response, in which the code waits for the client."""
        return []

    def show(self, chunk: OutputChunk) -> Events:  # noqa: ARG002  not reported for programs
        """Report nothing: OpenAI's form has no place for output of running code."""
        return []

    def finish(self, tool: ExecutedTool, container: str, base_url: str = "") -> Events:  # noqa: ARG002
        """Add the output as an item. See `CodeItem.finish`."""
        status = "completed" if _STATUSES[tool.status] == "completed" else "incomplete"
        item: Json = {"type": "program_output", "call_id": self.caller_id, "result": tool.output}
        index, _ = self._output.open("progo", {**item, "status": status})
        return [self._output.added(index), self._output.done(index)]

    def close(self, status: str) -> Events:  # noqa: ARG002  without an output, it is not complete
        """Close a program whose output never arrived, or was never requested."""
        return self.flush()


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
                "approval_request_id": call.approval_id,
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


def approval_events(output: Output, request: ApprovalRequest, tools: SessionTools) -> Events:
    """Add a request for approval as an item; if it was decided, report that. Return the events."""
    if request.approve is not None:
        indexes = [at for at, item in enumerate(output.items) if item["id"] == request.id]
        return [  # no event if the item is in the response that this one continues
            {
                "type": "ih_grpo:mcp_approval_request.decided",
                "item_id": request.id,
                "output_index": index,
                "approve": request.approve,
                "reason": request.reason,
                "decided_by": request.decided_by,
            }
            for index in indexes
        ]
    label, name = tools.origins[request.name]
    item: Json = {
        "type": "mcp_approval_request",
        "server_label": label,
        "name": name,
        "arguments": dumps(request.arguments).decode(),
    }
    index, _ = output.open("mcpr", item, request.id)
    return [output.added(index), output.done(index)]


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
