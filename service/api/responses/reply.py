"""From an episode's events to output items and the events of a response stream."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from service.api.final_answer import FinalAnswer
from service.api.functions.declared import Functions
from service.api.functions.hermes import (
    CallBegun,
    CallDone,
    CallFailed,
    CallWrote,
    HermesEvent,
    HermesParser,
    Said,
)
from service.api.responses.code_item import CodeItem
from service.api.responses.output import Events, FunctionCallItem, Output, TextItem
from service.api.thinking import CLOSE, Parted, ThinkSplitter
from service.api.token_logprobs import logprob_item
from service.api.wire import Json
from service.engines.base import Engine, TokenChunk
from service.events import (
    EpisodeEvent,
    Finished,
    FlushFinished,
    FlushStarted,
    Invoked,
    Observed,
    Sampled,
)
from service.stops import Stopped, reply_endings


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
            case Stopped(ids):
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
                case Said(text):
                    if text:
                        told += self._write(text, thought=False)
                case CallBegun(_, name):
                    told += self._close_text("completed")
                    self._call = FunctionCallItem(self.output, name, f"call_{secrets.token_hex(12)}")
                    told += self._call.open()
                case CallWrote(_, text):
                    assert self._call is not None  # noqa: S101
                    told += self._call.write(text)
                case CallFailed():
                    assert self._call is not None  # noqa: S101
                    told += self._call.close("incomplete")
                    self._call = None
                case CallDone():
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
