"""One choice of a chat completion, grown from the events of its episode."""

from __future__ import annotations

from dataclasses import dataclass

from service.api.chat.text import MessageText
from service.api.executed_tools import block_json, executed_tool, waiting_tool
from service.api.final_answer import FinalAnswer
from service.api.token_logprobs import logprob_item
from service.api.wire import Json
from service.engines.base import Engine, TokenChunk
from service.events import (
    EpisodeEvent,
    Finished,
    FlushFinished,
    FlushStarted,
    Invoked,
    InvokedBlock,
    Observed,
    Sampled,
)
from service.stops import Stopped, reply_endings


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
            case Stopped(ids):
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
