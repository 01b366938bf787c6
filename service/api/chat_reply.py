"""One choice of a chat completion, grown from the events of its episode."""

from __future__ import annotations

from dataclasses import dataclass

from service.api.executed_tools import executed_tool, waiting_tool
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


@dataclass(slots=True)
class Delta:
    """What one event adds to a streamed choice."""

    delta: Json
    logprobs: Json | None = None
    finish_reason: str | None = None


class Reply:
    """Takes events in order; tells what each adds, and at the end the whole.

    A streamed ``executed_tools`` entry is a snapshot: the last one with an ``id`` holds. Each has an
    ``index`` of its own, because the SDK's accumulator joins the strings of entries that share one.

    Args:
        index: the choice's index.
        engine: names the stop tokens and decodes.
        logprobs: report log-probabilities.
        thinking: the model may think first; those tokens are counted apart.
    """

    def __init__(self, index: int, engine: Engine, *, logprobs: bool, thinking: bool) -> None:
        self.index = index
        self.sampled_tokens = 0
        self.observation_tokens = 0
        self.reasoning_tokens = 0
        self.finish_reason = "stop"
        self._tokenizer = engine.tokenizer
        self._eos = engine.eos_token_ids
        self._think_end = engine.tokenizer.token_id("</think>") if thinking else None
        self._thinking = self._think_end is not None
        self._wants_logprobs = logprobs
        self._logprobs: list[Json] = []
        self._text: list[str] = []
        self._tools: list[Json] = []
        self._pending: list[InvokedBlock] = []
        self._snapshots = 0

    def take(self, event: EpisodeEvent) -> Delta | None:
        """What ``event`` adds to the stream; None if nothing."""
        match event:
            case Sampled(chunk):
                return self._sampled(chunk)
            case Observed(ids, text):
                self.observation_tokens += len(ids)
                return self._content(text)
            case Invoked(tool_id, _, block):
                self._pending.append(block)
                return self._snapshot(waiting_tool(tool_id, self._snapshots, self._pending, "pending"))
            case FlushStarted(tool_id, blocks):
                self._pending = []
                return self._snapshot(waiting_tool(tool_id, self._snapshots, blocks, "running"))
            case FlushFinished(tool):
                self._tools.append(executed_tool(tool, len(self._tools)))
                return self._snapshot(executed_tool(tool, self._snapshots))
            case Finished(outcome):
                self.finish_reason = "length" if outcome.is_truncated else "stop"
                return Delta({}, finish_reason=self.finish_reason)

    def choice(self) -> Json:
        """The choice as a whole."""
        message: Json = {
            "role": "assistant",
            "content": "".join(self._text),
            "refusal": None,
            "executed_tools": self._tools,
        }
        logprobs = {"content": self._logprobs, "refusal": None} if self._wants_logprobs else None
        return {
            "index": self.index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": self.finish_reason,
        }

    def _sampled(self, chunk: TokenChunk) -> Delta | None:
        ids, text = chunk.ids, chunk.text
        if ids and ids[-1] in self._eos:  # the stop token is no part of the content
            ids, text = ids[:-1], text.removesuffix(self._tokenizer.decode(ids[-1:]))
        self.sampled_tokens += len(ids)
        self._count_reasoning(ids)
        logprobs = [self._logprob(chunk, at) for at in range(len(ids))] if self._wants_logprobs else []
        self._logprobs += logprobs
        return self._content(text, {"content": logprobs, "refusal": None} if logprobs else None)

    def _content(self, text: str, logprobs: Json | None = None) -> Delta | None:
        self._text.append(text)
        return Delta({"content": text}, logprobs) if text or logprobs else None

    def _snapshot(self, tool: Json) -> Delta:
        self._snapshots += 1
        return Delta({"executed_tools": [tool]})

    def _count_reasoning(self, ids: tuple[int, ...]) -> None:
        for token in ids if self._thinking else ():
            self.reasoning_tokens += 1
            if token == self._think_end:
                self._thinking = False
                return

    def _logprob(self, chunk: TokenChunk, at: int) -> Json:
        top = chunk.top_logprobs[at] if chunk.top_logprobs else ()
        return {
            **self._token(chunk.ids[at], chunk.logprobs[at]),
            "top_logprobs": [self._token(item.token_id, item.logprob) for item in top],
        }

    def _token(self, token_id: int, logprob: float) -> Json:
        token = self._tokenizer.decode([token_id])
        # A token that holds part of a character decodes to a replacement; its bytes are not known here.
        known = "\ufffd" not in token
        return {
            "token": token,
            "logprob": max(logprob, -9999.0),  # JSON has no infinity
            "bytes": list(token.encode("utf-8", "surrogatepass")) if known else None,
        }


def usage(prompt_tokens: int, replies: list[Reply]) -> Json:
    """OpenAI's usage object; observation tokens are counted and told apart."""
    observed = sum(reply.observation_tokens for reply in replies)
    completion = observed + sum(reply.sampled_tokens for reply in replies)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt_tokens + completion,
        "completion_tokens_details": {
            "reasoning_tokens": sum(reply.reasoning_tokens for reply in replies),
            "observation_tokens": observed,
        },
    }
