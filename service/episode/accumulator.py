"""Accumulate the events of one reply: its text in parts, token counts, executed code and final answer.

Chat completions, text completions and the Responses API all read their replies through `ReplyAccumulator`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.deferral.answer import last_boxed
from service.deferral.episode import Outcome
from service.engines.base import TokenChunk, Tokenizer
from service.episode.events import (
    AnswerStarted,
    CallClosed,
    CallOpened,
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
from service.episode.reasoning_parser import THINK_CLOSE, ReasoningDelta, ReasoningParser, SplitText
from service.episode.stop_strings import StopStringHit
from service.episode.tool_parser import TextDelta, ToolCallEnd, ToolCallParser, ToolParserEvent

ReplyPart = ReasoningDelta | ToolParserEvent
"""Text, reasoning or part of a tool call, as a reply grows."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a request, over all of its replies."""

    prompt_tokens: int
    sampled_tokens: int
    observation_tokens: int
    """Given to the model, not written by it."""
    reasoning_tokens: int
    """The part of ``sampled_tokens`` that is a thought."""
    cached_tokens: int | None
    """Prompt tokens that were cached for every reply; None if the engine doesn't report them."""

    @property
    def completion_tokens(self) -> int:
        """Sampled and observation tokens."""
        return self.sampled_tokens + self.observation_tokens

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def since(self, before: Usage) -> Usage:
        """Return the counts of a request that continues a reply, which had the counts ``before``."""
        return Usage(
            prompt_tokens=before.total_tokens,
            sampled_tokens=self.sampled_tokens - before.sampled_tokens,
            observation_tokens=self.observation_tokens - before.observation_tokens,
            reasoning_tokens=self.reasoning_tokens - before.reasoning_tokens,
            cached_tokens=None,
        )


class FinalAnswer:
    r"""Find the final answer while a reply grows.

    The answer is the content of the last complete ``\boxed{...}``. A box that code printed counts, because it
    ends the episode. Without a box the answer is the last turn: the text after the last observation, or the
    whole reply if no code ran. There is no answer if that turn was cut by a limit, ends with code that never
    ran, or calls the client's functions. Thoughts are never searched. After code has called tools, a box that
    it printed may come from another party and does not count.
    """

    def __init__(self) -> None:
        self.has_foreign_output = False
        self._boxed: str | None = None
        self._turn: list[str] = []

    def add_text(self, text: str) -> None:
        """Add content that the model wrote."""
        self._turn.append(text)

    def add_observation(self, text: str) -> None:
        """End the turn with the observation ``text``."""
        printed = None if self.has_foreign_output else last_boxed(text)
        self._boxed = printed or last_boxed("".join(self._turn)) or self._boxed
        self._turn = []

    def drop_inserted(self) -> None:
        """Forget the text since the observation, which only repeats it."""
        self._turn = []

    def result(self, *, complete: bool) -> str | None:
        """Return the answer, or None.

        Args:
            complete: the last turn ended by itself, with no code pending and no call of a function.
        """
        text = "".join(self._turn)
        boxed = last_boxed(text) or self._boxed
        return boxed if boxed is not None or not complete else text.strip() or None


class ReplyAccumulator:
    """The state of one reply. `add` its events in order; each returns the parts that it adds.

    Args:
        tokenizer: the model's.
        endings: text of each token that ends a reply, by token id.
        prefix: beginning of the reply that was written for the model.
        reasoning: splits off the thought; None if all text is content.
        tools: parses calls of the client's functions; None if there are none to call.
        hidden_marker: the execute marker, to leave it and the observation of each flush out of the parts.
            None keeps both as text. A marker with no code pending is always text.
        separate_answer: all text before `AnswerStarted` is reasoning, and all text after it content.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        endings: Mapping[int, str],
        *,
        prefix: str = "",
        reasoning: ReasoningParser | None = None,
        tools: ToolCallParser | None = None,
        hidden_marker: str | None = None,
        separate_answer: bool = False,
    ) -> None:
        self.sampled_tokens = 0
        self.observation_tokens = 0
        self.reasoning_tokens = 0
        self.cached_tokens: int | None = None
        self.shown_tokens = 0
        """Tokens of the last sampled chunk whose text may be shown: without an end token or hidden marker."""
        self.ids: list[int] = []
        """Token ids of the reply in the context, without ``prefix`` and end tokens."""
        self.executed: list[ExecutedTool] = []
        self.pending: list[InvokedBlock] = []
        """Blocks that wait for the next flush."""
        self.unflushed: tuple[InvokedBlock, ...] = ()
        """Pending blocks that never ran; set at the end."""
        self.finished_calls = 0
        """Complete calls of the client's functions."""
        self.outcome: Outcome | None = None
        """Set at the end."""
        self.stop_string: str | None = None
        """The stop string that ended the reply."""
        self.final_answer: str | None = None
        """Set at the end; see `FinalAnswer`."""
        self._endings = endings
        self._think_close = None if reasoning is None else tokenizer.token_id(THINK_CLOSE)
        self._reasoning = reasoning
        self._tools = tools
        self._hidden_marker = hidden_marker
        self._held_marker = ""
        """A marker just written, until it is known whether code runs."""
        self._hides_observation = False
        self._before_answer = separate_answer
        self._texts: list[str] = [prefix] if prefix else []
        self._answer = FinalAnswer()
        if tools is not None and prefix:
            tools.feed(prefix)  # a prefix ends before a call's arguments, so there are no events yet

    @property
    def text(self) -> str:
        """All text of the reply in the context, ``prefix``, markers and observations included."""
        return "".join(self._texts)

    def add(self, event: EpisodeEvent) -> list[ReplyPart]:
        """Add ``event`` and return the parts of the reply that it completes.

        Raises:
            CallError: the model wrote an invalid call, and ``tools`` is strict.
        """
        match event:
            case Sampled(chunk):
                return self._add_sampled(chunk)
            case StopStringHit(ids, text):
                self.sampled_tokens += len(ids)
                self.stop_string = text
            case Observed(ids, text):
                return self._add_observation(ids, text)
            case AnswerStarted(ids, text):
                return self._begin_answer(ids, text)
            case Invoked(_, _, block):
                self.pending.append(block)
            case CallOpened():
                return self._open_call()
            case CallClosed():
                return [] if self._tools is None else self._note(self._tools.close_call())
            case FlushStarted():
                self.pending = []
                self._held_marker = ""
                if self._tools is not None and self._hidden_marker is not None:
                    self._tools.drop_tag()
                return self._end_reasoning()
            case FlushFinished(tool):
                self.executed.append(tool)
                self._answer.has_foreign_output |= bool(tool.calls)
                self._hides_observation = self._hidden_marker is not None
            case Finished(outcome, unflushed):
                self.outcome, self.unflushed = outcome, unflushed
                parts = self.end(cut_off=outcome.is_truncated)
                code_left = bool(self.pending or unflushed)
                complete = not (outcome.is_truncated or self.finished_calls or code_left)
                self.final_answer = self._answer.result(complete=complete)
                return parts
        return []

    def end(self, *, cut_off: bool) -> list[ReplyPart]:
        """Return the text that was held back. With ``cut_off`` a call may be incomplete.

        Raises:
            CallError: as `add`.
        """
        parts = [*self._release_marker(), *self._end_reasoning()]
        if self._tools is not None:
            parts += self._note(self._tools.end(cut_off=cut_off))
            self._tools = None
        return parts

    def abandon(self) -> list[ReplyPart]:
        """End a reply that was interrupted. An unfinished call is dropped without being checked."""
        self._tools = None
        return self.end(cut_off=True)

    def _add_sampled(self, chunk: TokenChunk) -> list[ReplyPart]:
        ids, text = chunk.ids, chunk.text
        parts = self._release_marker() if self._held_marker else []
        if self.cached_tokens is None:  # later turns continue from the cache of this very request
            self.cached_tokens = chunk.cached_tokens
        if chunk.is_forced:
            self.observation_tokens += len(ids)
        else:
            self.sampled_tokens += len(ids)
            self.reasoning_tokens += len(ids) if self._before_answer else 0
        if ids and (ending := self._endings.get(ids[-1])) is not None:  # counted, but not shown
            ids, text = ids[:-1], text.removesuffix(ending)
        self.ids += ids
        self.shown_tokens = len(ids)
        self._texts.append(text)
        if self._hidden_marker is not None and text.endswith(self._hidden_marker):
            self._held_marker, text = self._hidden_marker, text.removesuffix(self._hidden_marker)
            self.shown_tokens -= 1
        if self._reasoning is None:
            content = self._content(text)
            return [*parts, *content] if parts else content
        was_thinking = self._reasoning.is_thinking
        split = self._reasoning.feed(text)
        in_thought = was_thinking or self._reasoning.is_thinking or bool(split.reasoning)
        if in_thought and not (chunk.is_forced or self._before_answer):
            closes = self._think_close in ids
            self.reasoning_tokens += ids.index(self._think_close) + 1 if closes else len(ids)
        if self._reasoning.is_done:
            self._reasoning = None
        return [*parts, *self._split_parts(split)]

    def _begin_answer(self, ids: Sequence[int], text: str) -> list[ReplyPart]:
        parts = [*self._release_marker(), *self._end_reasoning()]
        if self._tools is not None:
            parts += self._note(self._tools.end(cut_off=False))
            self._tools = None
        self.observation_tokens += len(ids)
        self.ids += ids
        self._texts.append(text)
        parts += self._content(text)
        self._before_answer, self._reasoning, self._answer = False, None, FinalAnswer()
        return parts

    def _add_observation(self, ids: Sequence[int], text: str) -> list[ReplyPart]:
        self.observation_tokens += len(ids)
        self.ids += ids
        self._texts.append(text)
        parts: list[ReplyPart] = []
        self._answer.add_observation(text)
        if self._hides_observation:
            self._hides_observation = False
        else:
            parts = [*self._release_marker(), *self._insert(text)]
            self._answer.drop_inserted()
        return parts

    def _release_marker(self) -> list[ReplyPart]:
        """Show a marker that ran nothing as text, unless pending blocks stand for it."""
        marker, self._held_marker = self._held_marker, ""
        return self._insert(marker) if marker and not self.pending else []

    def _open_call(self) -> list[ReplyPart]:
        """Begin a call after its opening tag, which may have been held back as a marker."""
        marker, self._held_marker = self._held_marker, ""
        parts = self._insert(marker) if marker else []
        return parts if self._tools is None else [*parts, *self._note(self._tools.open_call())]

    def _insert(self, text: str) -> list[ReplyPart]:
        if self._reasoning is None:
            return self._content(text)
        return self._split_parts(self._reasoning.insert(text))

    def _end_reasoning(self) -> list[ReplyPart]:
        return [] if self._reasoning is None else self._split_parts(self._reasoning.end())

    def _split_parts(self, split: SplitText) -> list[ReplyPart]:
        reasoning: list[ReplyPart] = [ReasoningDelta(split.reasoning)] if split.reasoning else []
        return [*reasoning, *self._content(split.content)]

    def _content(self, text: str) -> list[ReplyPart]:
        if not text:
            return []
        if self._tools is not None:
            return self._note(self._tools.feed(text))
        if self._before_answer:
            return [ReasoningDelta(text)]
        self._answer.add_text(text)
        return [TextDelta(text)]

    def _note(self, events: Sequence[ToolParserEvent]) -> list[ReplyPart]:
        parts: list[ReplyPart] = []
        for event in events:
            if isinstance(event, TextDelta):
                if not event.text:
                    continue
                if self._before_answer:
                    parts.append(ReasoningDelta(event.text))
                    continue
                self._answer.add_text(event.text)
            elif isinstance(event, ToolCallEnd):
                self.finished_calls += 1
            parts.append(event)
        return parts


def usage_of(prompt_tokens: int, replies: Sequence[ReplyAccumulator]) -> Usage:
    """Return the token counts of a request with ``replies``. The prompt counts once."""
    cached = [reply.cached_tokens for reply in replies if reply.cached_tokens is not None]
    return Usage(
        prompt_tokens=prompt_tokens,
        sampled_tokens=sum(reply.sampled_tokens for reply in replies),
        observation_tokens=sum(reply.observation_tokens for reply in replies),
        reasoning_tokens=sum(reply.reasoning_tokens for reply in replies),
        cached_tokens=min(cached) if cached else None,
    )
