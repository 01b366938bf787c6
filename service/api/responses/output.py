"""The output items of a response, and the events that tell how they come about.

``code_interpreter_call``: one item a flush, which opens when its first block becomes pending.

From an episode's events to output items and the events of a response stream.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from service.api.output import FinalAnswer, logprob_item
from service.api.reasoning_parser import CLOSE, Parted, ThinkSplitter
from service.api.responses.items import output_item_id
from service.api.tools.definitions import Functions
from service.api.tools.parser import (
    ArgumentsDelta,
    CallFailed,
    HermesEvent,
    HermesParser,
    TextDelta,
    ToolCallEnd,
    ToolCallStart,
)
from service.common.json import Json
from service.engines.base import Engine, TokenChunk
from service.episode.events import (
    EpisodeEvent,
    ExecutedTool,
    Finished,
    FlushFinished,
    FlushStarted,
    Invoked,
    InvokedBlock,
    Observed,
    Sampled,
)
from service.episode.stop_strings import StopStringHit, reply_endings
from service.sandbox.base import Status

Events = list[Json]


class OutputItem(Protocol):
    """An item that grows."""

    def close(self, status: str) -> Events:
        """Nothing more is added; ``status`` is completed or incomplete."""
        ...


@dataclass(slots=True)
class Output:
    """All items so far, as the response object holds them."""

    response_id: str
    items: list[Json] = field(default_factory=list)

    def open(self, kind: str, item: Json) -> tuple[int, str]:
        """A place for a new item; gives its index and its id."""
        index = len(self.items)
        item_id = output_item_id(kind, self.response_id, index)
        self.items.append({"id": item_id, **item})
        return index, item_id

    def added(self, index: int) -> Json:
        """The event that ``index`` is there."""
        return {"type": "response.output_item.added", "output_index": index, "item": dict(self.items[index])}

    def done(self, index: int, **final: object) -> Json:
        """The event that ``index`` is as it will stay."""
        self.items[index] = {**self.items[index], **final}
        return {"type": "response.output_item.done", "output_index": index, "item": dict(self.items[index])}


class TextItem:
    """A message, or a thought: one part of text that is written piece by piece."""

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
        """More text, and the log-probabilities of its tokens where they are asked for."""
        self._pieces.append(text)
        self._logprobs += logprobs
        told: Json = {} if self.thought else {"logprobs": logprobs}
        return [self._event(f"{self._name}.delta", delta=text, **told)]

    def close(self, status: str) -> Events:
        text = "".join(self._pieces)
        part = self._part(text)
        told: Json = {} if self.thought else {"logprobs": self._logprobs}
        sealed: Json = {} if self._seal is None else {"encrypted_content": self._seal(text)}
        return [
            self._event(f"{self._name}.done", text=text, **told),
            self._event("response.content_part.done", part=part),
            self._output.done(self._index, status=status, content=[part], **sealed),
        ]

    def _part(self, text: str) -> Json:
        if self.thought:
            return {"type": "reasoning_text", "text": text}
        return {
            "type": "output_text",
            "text": text,
            "annotations": [],
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
    """A call of a function of the client."""

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
        """More of the arguments."""
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


_STATUSES: dict[Status, str] = {
    "ok": "completed",
    "error": "completed",  # the interpreter did its work: the traceback is its output
    "output_limit": "completed",
    "timeout": "failed",
    "oom": "failed",
    "sandbox_error": "failed",
}


class CodeItem:
    """The blocks that one flush runs as one script.

    OpenAI's names for what happens: ``in_progress`` when the first block is pending, ``code.delta`` for each
    block, and at the flush ``code.done``, ``interpreting``, then ``completed`` when the model has its output.
    What a block does in the background before the flush is not told: until the flush it has not happened.

    Args:
        output: where it belongs.
        container: the episode's container, as far as it is known.
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
        """One more block is pending."""
        piece = f"\n{block.code}" if self._code else block.code
        self._code += piece
        return [self._event("response.code_interpreter_call_code.delta", delta=piece)]

    def flush(self) -> Events:
        """The model asks for the output."""
        self._flushed = True
        return [self._code_done(), self._event("response.code_interpreter_call.interpreting")]

    def finish(self, tool: ExecutedTool, container: str) -> Events:
        """The output is there. How the code fared is the item's status; the call itself is completed."""
        return [
            self._event("response.code_interpreter_call.completed"),
            self._output.done(
                self._index,
                status=_STATUSES[tool.status],
                code=self._code,
                container_id=container,
                outputs=[{"type": "logs", "logs": tool.output}],
            ),
        ]

    def close(self, status: str) -> Events:  # noqa: ARG002  it has no output, whatever the rest is
        """The response is over before the output was there, or the model never asked for it."""
        done = [] if self._flushed else [self._code_done()]
        return [*done, self._output.done(self._index, status="incomplete", code=self._code)]

    def _code_done(self) -> Json:
        return self._event("response.code_interpreter_call_code.done", code=self._code)

    def _event(self, name: str, **fields: object) -> Json:
        return {"type": name, "item_id": self._id, "output_index": self._index, **fields}


class Reply:
    """Takes an episode's events in order and gives what each adds to the stream, sequence numbers apart.

    A turn is one message (or one thought), in which the code stands as the model wrote it; a flush is one
    ``code_interpreter_call``. The marker and the observation are the call's, so they are in no message; where
    nothing was pending there is no call, and they stay in the text.

    Args:
        response_id: the response's id.
        engine: names the stop tokens and decodes.
        prompt_end: the last characters of the prompt, without ``prefix``.
        prefix: what was written for the model at the beginning of its reply.
        functions: those that it may call; None where ``<tool_call>`` is no call of them.
        marker: the execute marker; None where no code runs.
        strict_calls: raise for a call that can't be made; otherwise its text becomes a message.
        logprobs: tell the log-probabilities of the message's tokens.
        seal: seals thoughts for the client to keep; None where it does not ask for that.
    """

    def __init__(
        self,
        response_id: str,
        engine: Engine,
        *,
        prompt_end: str,
        prefix: str = "",
        functions: Functions | None = None,
        strict_calls: bool = False,
        marker: str | None = None,
        logprobs: bool = False,
        seal: Callable[[str], str] | None = None,
    ) -> None:
        self._seal = seal
        self.output = Output(response_id)
        self.sampled_tokens = self.observation_tokens = self.reasoning_tokens = 0
        self.cached_tokens: int | None = None
        self._tokenizer = engine.tokenizer
        self._endings = reply_endings(engine)
        self._think_end = engine.tokenizer.token_id(CLOSE)
        self._splitter = ThinkSplitter(prompt_end)
        self._parser = None if functions is None else HermesParser(functions.check, strict=strict_calls)
        self._marker = marker
        self._held_marker = ""
        self._wants_logprobs = logprobs
        self._logprobs: list[Json] = []
        self._written: list[str] = [prefix] if prefix else []
        self.ids: list[int] = []
        """Token ids of the reply as they stand in the context, without an end token and ``prefix``."""
        self._text: TextItem | None = None
        self._call: FunctionCallItem | None = None
        self._code: CodeItem | None = None
        self._container = ""
        self._observed_by_call = False
        self._answer = FinalAnswer()
        self.final_answer: str | None = None
        """Set at the end; see ``FinalAnswer``."""
        if self._parser is not None and prefix:
            self._begun = self._calls(self._parser.feed(prefix))
        else:
            self._begun = []

    @property
    def text(self) -> str:
        """What the model wrote and was shown, to the letter."""
        return "".join(self._written)

    def take(self, event: EpisodeEvent) -> Events:
        """What ``event`` adds to the stream.

        Raises:
            CallError: the model calls a function in a way that can't be.
        """
        begun, self._begun = self._begun, []
        return [*begun, *self._take(event)]

    def _take(self, event: EpisodeEvent) -> Events:
        match event:
            case Sampled(chunk):
                return self._sampled(chunk)
            case StopStringHit(ids):
                self.sampled_tokens += len(ids)
            case Invoked(_, _, block):
                opened: Events = []
                if self._code is None:
                    self._code = CodeItem(self.output, self._container)
                    opened = self._code.open()
                return [*opened, *self._code.add(block)]
            case FlushStarted():
                self._held_marker = ""
                assert self._code is not None  # noqa: S101  its blocks were invoked
                return [
                    *self._shown(self._splitter.end()),
                    *self._close_text("completed"),
                    *self._code.flush(),
                ]
            case FlushFinished(tool):
                self._container = tool.container or ""
                assert self._code is not None  # noqa: S101
                code, self._code = self._code, None
                self._observed_by_call = True
                return code.finish(tool, self._container)
            case Observed(ids, text):
                return self._observed(ids, text)
            case Finished(outcome):
                has_pending = self._code is not None
                told = self.end("incomplete" if outcome.is_truncated else "completed")
                calls = any(item["type"] == "function_call" for item in self.output.items)
                complete = not (outcome.is_truncated or has_pending or calls)
                self.final_answer = self._answer.result(complete=complete)
                return told
        return []

    def end(self, status: str) -> Events:
        """The response is over: what is still open is closed.

        Raises:
            CallError: as `take`.
        """
        told = [*self._release_marker(), *self._shown(self._splitter.end())]
        parser, self._parser = self._parser, None
        if parser is not None:
            told += self._calls(parser.end(cut_off=status != "completed"))
        told += self._close_text(status)
        for item in (self._call, self._code):
            if item is not None:
                told += item.close("incomplete")
        self._call = self._code = None
        if not self.output.items:  # a reply of nothing is a message of nothing
            told += [*self._open_text(thought=False), *self._close_text(status)]
        return told

    def abandon(self) -> Events:
        """The response is over in the middle; nothing is judged any more."""
        self._parser = None
        return self.end("incomplete")

    def usage(self, prompt_tokens: int) -> Json:
        """OpenAI's usage object; observation tokens are counted and told apart."""
        completion = self.sampled_tokens + self.observation_tokens
        return {
            "input_tokens": prompt_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens or 0, "cache_write_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {
                "reasoning_tokens": self.reasoning_tokens,
                "observation_tokens": self.observation_tokens,
            },
            "total_tokens": prompt_tokens + completion,
        }

    def _sampled(self, chunk: TokenChunk) -> Events:
        told = self._release_marker()
        ids, text = chunk.ids, chunk.text
        if self.cached_tokens is None:
            self.cached_tokens = chunk.cached_tokens
        self.sampled_tokens += len(ids)
        if ids and (ending := self._endings.get(ids[-1])) is not None:  # counted, but no part of the output
            ids, text = ids[:-1], text.removesuffix(ending)
        self._written.append(text)
        self.ids += ids
        self._count_reasoning(ids)
        if self._marker is not None and text.endswith(self._marker):
            self._held_marker, text = self._marker, text.removesuffix(self._marker)
        if self._wants_logprobs:
            shown = range(len(ids) - bool(self._held_marker))
            self._logprobs += [_with_bytes(logprob_item(chunk, at, self._tokenizer)) for at in shown]
        parted = self._splitter.feed(text)
        return [*told, *self._shown(parted)]

    def _count_reasoning(self, ids: tuple[int, ...]) -> None:
        if self._splitter.thinking:
            closed = self._think_end in ids
            self.reasoning_tokens += ids.index(self._think_end) + 1 if closed else len(ids)

    def _observed(self, ids: Sequence[int], text: str) -> Events:
        self.observation_tokens += len(ids)
        self.ids += ids
        self._written.append(text)
        if self._observed_by_call:
            self._observed_by_call = False
            self._answer.observed(text)
            return []
        told = [*self._release_marker(), *self._shown(self._splitter.given(text))]
        self._answer.observed(text)
        return told

    def _release_marker(self) -> Events:
        """A marker that releases nothing is text, save where a call that was never flushed tells of it."""
        marker, self._held_marker = self._held_marker, ""
        return self._shown(self._splitter.given(marker)) if marker and self._code is None else []

    def _shown(self, parted: Parted) -> Events:
        told: Events = []
        if parted.reasoning:
            told += self._write(parted.reasoning, thought=True)
        if parted.content:
            if self._parser is None:
                told += self._write(parted.content, thought=False)
            else:
                told += self._calls(self._parser.feed(parted.content))
        return told

    def _write(self, text: str, *, thought: bool) -> Events:
        told: Events = []
        if not thought:
            self._answer.wrote(text)
        if self._text is not None and self._text.thought != thought:
            told += self._close_text("completed")
        if self._text is None:
            told += self._open_text(thought=thought)
        assert self._text is not None  # noqa: S101
        logprobs, self._logprobs = self._logprobs, []
        return [*told, *self._text.write(text, [] if thought else logprobs)]

    def _open_text(self, *, thought: bool) -> Events:
        self._text = TextItem(self.output, thought=thought, logprobs=self._wants_logprobs, seal=self._seal)
        return self._text.open()

    def _close_text(self, status: str) -> Events:
        text, self._text = self._text, None
        return [] if text is None else text.close(status)

    def _calls(self, events: list[HermesEvent]) -> Events:
        told: Events = []
        for event in events:
            match event:
                case TextDelta(text):
                    if text:
                        told += self._write(text, thought=False)
                case ToolCallStart(_, name):
                    told += self._close_text("completed")
                    self._call = FunctionCallItem(self.output, name, f"call_{secrets.token_hex(12)}")
                    told += self._call.open()
                case ArgumentsDelta(_, text):
                    assert self._call is not None  # noqa: S101
                    told += self._call.write(text)
                case CallFailed():
                    assert self._call is not None  # noqa: S101
                    told += self._call.close("incomplete")
                    self._call = None
                case ToolCallEnd():
                    assert self._call is not None  # noqa: S101
                    told += self._call.close("completed")
                    self._call = None
        return told


def _with_bytes(item: Json) -> Json:
    """OpenAI's Responses types want a list where chat completions' allow null."""
    alternatives: list[Json] = item["top_logprobs"]  # type: ignore[assignment]
    return {
        **item,
        "bytes": item["bytes"] or [],
        "top_logprobs": [{**other, "bytes": other["bytes"] or []} for other in alternatives],
    }
