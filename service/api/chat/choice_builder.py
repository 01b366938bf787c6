"""One choice of a chat completion, grown from the events of its episode.

From the model's text to the fields of a message: reasoning, content, calls of the client's functions.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.api.output import FinalAnswer, block_json, executed_tool, logprob_item, waiting_tool
from service.api.reasoning_parser import Parted, ThinkSplitter
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
    Finished,
    FlushFinished,
    FlushStarted,
    Invoked,
    InvokedBlock,
    Observed,
    Sampled,
)
from service.episode.stop_strings import StopStringHit, reply_endings

Fields = dict[str, Any]
"""Fields of a message, or what is added to them."""


class MessageText:
    """Takes text as it comes, gives the delta that it adds to the message, and keeps the whole.

    Args:
        prompt_end: the last characters of the prompt, without ``prefix``.
        prefix: what was written for the model at the beginning of its reply.
        functions: those that the reply may call; None where ``<tool_call>`` is no call of them.
        strict: raise for a call that can't be made; otherwise its text becomes content.
    """

    def __init__(
        self, prompt_end: str, prefix: str, functions: Functions | None, *, strict: bool = False
    ) -> None:
        self._splitter = ThinkSplitter(prompt_end)
        self._parser = None if functions is None else HermesParser(functions.check, strict=strict)
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._calls: list[Fields] = []
        self._arguments: list[list[str]] = []
        self.finished_calls = 0
        if self._parser is not None and prefix:
            self._take(self._parser.feed(prefix), [])

    def written(self, text: str) -> Fields:
        """The model wrote ``text``.

        Raises:
            CallError: a call that can't be made.
        """
        return self._delta(self._splitter.feed(text))

    def given(self, text: str) -> Fields:
        """``text`` was given to the model."""
        return self._delta(self._splitter.given(text))

    def end(self, *, cut_off: bool) -> Fields:
        """What was held back; ``cut_off`` where a limit ended the reply.

        Raises:
            CallError: as `written`.
        """
        delta = self._delta(self._splitter.end())
        if self._parser is not None:
            calls: list[Fields] = []
            said = self._take(self._parser.end(cut_off=cut_off), calls)
            _add(delta, said, calls)
        return delta

    def message(self) -> Fields:
        """The message as a whole."""
        content = "".join(self._content)
        message: Fields = {"role": "assistant", "content": content, "refusal": None}
        if reasoning := "".join(self._reasoning):
            # Clients differ in which of the two names they read.
            message |= {"reasoning": reasoning, "reasoning_content": reasoning}
        if self._calls:
            message["content"] = content or None
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": "".join(arguments)},
                }
                for call, arguments in zip(self._calls, self._arguments, strict=True)
            ]
        return message

    def _delta(self, parted: Parted) -> Fields:
        delta: Fields = {}
        if parted.reasoning:
            self._reasoning.append(parted.reasoning)
            delta |= {"reasoning": parted.reasoning, "reasoning_content": parted.reasoning}
        said = parted.content
        calls: list[Fields] = []
        if self._parser is None:
            self._content.append(said)
        else:
            said = self._take(self._parser.feed(said), calls)
        _add(delta, said, calls)
        return delta

    def _take(self, events: Sequence[HermesEvent], deltas: list[Fields]) -> str:
        """Note ``events``; append the deltas of calls; give the text between them."""
        said = ""
        for event in events:
            match event:
                case TextDelta(text):
                    said += text
                case ToolCallStart(index, name):
                    call: Fields = {"id": f"call_{secrets.token_hex(12)}", "name": name}
                    self._calls.append(call)
                    self._arguments.append([])
                    function = {"name": name, "arguments": ""}
                    deltas.append(
                        {"index": index, "id": call["id"], "type": "function", "function": function}
                    )
                case ArgumentsDelta(index, text):
                    self._arguments[index].append(text)
                    _append_arguments(deltas, index, text)
                case ToolCallEnd():
                    self.finished_calls += 1
                case CallFailed():
                    self._calls.pop()
                    self._arguments.pop()
        self._content.append(said)
        return said


def _append_arguments(deltas: list[Fields], index: int, text: str) -> None:
    """One entry a call and delta: accumulators of clients join what comes later, not what comes together."""
    if deltas and deltas[-1]["index"] == index:
        deltas[-1]["function"]["arguments"] += text
    else:
        deltas.append({"index": index, "function": {"arguments": text}})


def _add(delta: Fields, said: str, calls: list[Fields]) -> None:
    if said:
        before = delta.get("content", "")
        delta["content"] = f"{before}{said}"
    if calls:
        delta["tool_calls"] = [*delta.get("tool_calls", ()), *calls]


@dataclass(slots=True)
class Delta:
    """What one event adds to a streamed choice."""

    delta: Json
    logprobs: Json | None = None
    finish_reason: str | None = None

    @property
    def only_content(self) -> object:
        """The text, where nothing else is added; else None."""
        is_bare = self.logprobs is None and self.finish_reason is None and len(self.delta) == 1
        return self.delta.get("content") if is_bare else None


class Reply:
    """Takes events in order; tells what each adds, and at the end the whole.

    A streamed ``executed_tools`` entry is a snapshot: the last one with an ``id`` holds. Each has an
    ``index`` of its own, because the SDK's accumulator joins the strings of entries that share one.

    Args:
        index: the choice's index.
        engine: names the stop tokens and decodes.
        text: parts the model's text into the fields of the message.
        logprobs: report log-probabilities.
        thinks: a thought may come first; its tokens are counted apart.
    """

    def __init__(
        self, index: int, engine: Engine, text: MessageText, *, logprobs: bool, thinks: bool
    ) -> None:
        self.index = index
        self.sampled_tokens = 0
        self.observation_tokens = 0
        self.reasoning_tokens = 0
        self.cached_tokens: int | None = None
        self.finish_reason = "stop"
        self._tokenizer = engine.tokenizer
        self._endings = reply_endings(engine)
        self._think_end = engine.tokenizer.token_id("</think>") if thinks else None
        self._thinking = self._think_end is not None
        self._wants_logprobs = logprobs
        self._logprobs: list[Json] = []
        self._text = text
        self._tools: list[Json] = []
        self._pending: list[InvokedBlock] = []
        self._unflushed: list[Json] = []
        self._snapshots = 0
        self.ids: list[int] = []
        """Token ids of the reply as they stand in the context, without an end token."""
        self._answer = FinalAnswer()
        self.final_answer: str | None = None
        """Set at the end; see ``FinalAnswer``."""

    def take(self, event: EpisodeEvent) -> Delta | None:
        """What ``event`` adds to the stream; None if nothing.

        Raises:
            CallError: the model called one of the client's functions in a way that can't be passed on.
        """
        match event:
            case Sampled(chunk):
                return self._sampled(chunk)
            case StopStringHit(ids):
                self.sampled_tokens += len(ids)
                return None
            case Observed(ids, text):
                self.observation_tokens += len(ids)
                self.ids += ids
                self._answer.observed(text)
                return Delta(self._text.given(text))
            case Invoked(tool_id, _, block):
                self._pending.append(block)
                return self._snapshot(waiting_tool(tool_id, self._snapshots, self._pending, "pending"))
            case FlushStarted(tool_id, blocks):
                self._pending = []
                return self._snapshot(waiting_tool(tool_id, self._snapshots, blocks, "running"))
            case FlushFinished(tool):
                self._tools.append(executed_tool(tool, len(self._tools)))
                return self._snapshot(executed_tool(tool, self._snapshots))
            case Finished(outcome, unflushed):
                delta = self._text.end(cut_off=outcome.is_truncated)
                if unflushed:
                    self._unflushed = [block_json(block) for block in unflushed]
                    delta["unflushed_blocks"] = self._unflushed
                self._answer.wrote(delta.get("content") or "")
                self.finish_reason = "length" if outcome.is_truncated else "stop"
                if self._text.finished_calls and not outcome.is_truncated:
                    self.finish_reason = "tool_calls"
                complete = self.finish_reason == "stop" and not self._pending and not unflushed
                self.final_answer = self._answer.result(complete=complete)
                delta["final_answer"] = self.final_answer
                return Delta(delta, finish_reason=self.finish_reason)

    @property
    def ran_code(self) -> bool:
        """Whether a flush is part of the reply."""
        return bool(self._tools)

    def choice(self) -> Json:
        """The choice as a whole."""
        logprobs = {"content": self._logprobs, "refusal": None} if self._wants_logprobs else None
        return {
            "index": self.index,
            "message": self.message(),
            "logprobs": logprobs,
            "finish_reason": self.finish_reason,
        }

    def message(self) -> Json:
        """The choice's message. The lists of flushes and of unflushed blocks are left out if empty."""
        lists = {"executed_tools": self._tools, "unflushed_blocks": self._unflushed}
        present = {name: items for name, items in lists.items() if items}
        return {**self._text.message(), "final_answer": self.final_answer, **present}

    def _sampled(self, chunk: TokenChunk) -> Delta | None:
        ids, text = chunk.ids, chunk.text
        if self.cached_tokens is None:  # later turns go on from the cache of this very request
            self.cached_tokens = chunk.cached_tokens
        self.sampled_tokens += len(ids)
        if ids and (ending := self._endings.get(ids[-1])) is not None:  # counted, but no part of the content
            ids, text = ids[:-1], text.removesuffix(ending)
        self.ids += ids
        if self._thinking:
            self._count_reasoning(ids)
        delta = self._text.written(text)
        if content := delta.get("content"):
            self._answer.wrote(content)
        if not self._wants_logprobs:
            return Delta(delta) if delta else None
        logprobs = [logprob_item(chunk, at, self._tokenizer) for at in range(len(ids))]
        self._logprobs += logprobs
        if not delta and not logprobs:
            return None
        return Delta(delta, {"content": logprobs, "refusal": None} if logprobs else None)

    def _snapshot(self, tool: Json) -> Delta:
        self._snapshots += 1
        return Delta({"executed_tools": [tool]})

    def _count_reasoning(self, ids: tuple[int, ...]) -> None:
        for token in ids:
            self.reasoning_tokens += 1
            if token == self._think_end:
                self._thinking = False
                return


def usage(prompt_tokens: int, replies: list[Reply]) -> Json:
    """OpenAI's usage object; observation tokens are counted and told apart."""
    observed = sum(reply.observation_tokens for reply in replies)
    completion = observed + sum(reply.sampled_tokens for reply in replies)
    told: Json = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt_tokens + completion,
        "completion_tokens_details": {
            "reasoning_tokens": sum(reply.reasoning_tokens for reply in replies),
            "observation_tokens": observed,
        },
    }
    cached = [reply.cached_tokens for reply in replies if reply.cached_tokens is not None]
    if cached:
        # The prompt is counted once, so what of it was cached for all is told.
        told["prompt_tokens_details"] = {"cached_tokens": min(cached)}
    return told
