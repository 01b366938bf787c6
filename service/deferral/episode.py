"""The state machine of one episode: no I/O, no clock. A driver feeds it tokens and sandbox results.

The tokens of an episode as they were sampled or given; the trainer reads them as they are.

Count delayed calls, and refuse the count to flushes that game it (algorithm.md, section 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Literal

from service.deferral.answer import last_boxed
from service.deferral.code_request import computes_nothing
from service.deferral.fences import BlockClosed, FenceScanner
from service.deferral.observation import (
    NOTHING_PENDING,
    FlushResult,
    ObservationTokenizer,
    observation_ids,
    result_text,
)
from service.deferral.policy import DeferralPolicy


class Transcript:
    """Prompt and response of one episode. The three response lists are aligned, one item a token.

    Attributes:
        prompt_ids: the prompt.
        ids: the response: sampled tokens and observations.
        mask: 1 where the model sampled the token, 0 where it was given.
        logprobs: the engine's log-probability of each sampled token; 0.0 where it was given.
        text: the response's text.
        dropped_ends: end-of-turn tokens that were sampled and left the context again, because the server ran
            pending code in their place: (position in ``ids``, token id, log-probability).
    """

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self.prompt_ids = tuple(prompt_ids)
        self.ids: list[int] = []
        self.mask: list[int] = []
        self.logprobs: list[float] = []
        self.dropped_ends: list[tuple[int, int, float]] = []
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def context_ids(self) -> list[int]:
        return [*self.prompt_ids, *self.ids]

    @property
    def sampled_tokens(self) -> int:
        return sum(self.mask)

    @property
    def observation_tokens(self) -> int:
        return len(self.mask) - sum(self.mask)

    def add_sampled(self, ids: Sequence[int], text: str, logprobs: Sequence[float]) -> None:
        self._add(ids, text, 1, logprobs)

    def add_observation(self, ids: Sequence[int], text: str) -> None:
        self._add(ids, text, 0, [0.0] * len(ids))

    def drop_end(self, endings: Mapping[int, str]) -> None:
        """Take the sampled end-of-turn token off the end of the response, if it is there.

        Args:
            endings: text of each token that ends a turn.
        """
        if not self.ids or self.ids[-1] not in endings or not self.mask[-1]:
            return
        token, logprob = self.ids.pop(), self.logprobs.pop()
        self.mask.pop()
        self.dropped_ends.append((len(self.ids), token, logprob))
        self._texts[-1] = self._texts[-1].removesuffix(endings[token])

    def _add(self, ids: Sequence[int], text: str, mask: int, logprobs: Sequence[float]) -> None:
        if len(logprobs) != len(ids):
            raise ValueError(f"{len(ids)} ids but {len(logprobs)} logprobs")
        self.ids.extend(ids)
        self.mask.extend([mask] * len(ids))
        self.logprobs.extend(logprobs)
        self._texts.append(text)


def delayed_calls(codes: Sequence[str], gaps: Sequence[str]) -> int:
    """Delayed calls of one flush: all of its blocks but the last, or 0 if the flush games the count.

    Args:
        codes: the flushed blocks in order.
        gaps: the text between each block and the next; one item less than ``codes``.

    A flush games the count when two blocks have nothing between them, when a block is empty, or when a block
    repeats the earlier ones: all its lines stand in them, or it holds all of theirs. Comments and prints are
    left out of that comparison, and a block of nothing else repeats nothing.
    """
    if any(not gap.strip() for gap in gaps) or any(not code.strip() for code in codes):
        return 0
    earlier: set[str] = set()
    for code in codes:
        lines = _telling_lines(code)
        if lines and earlier and (lines <= earlier or lines >= earlier):
            return 0
        earlier |= lines
    return max(len(codes) - 1, 0)


def _telling_lines(code: str) -> set[str]:
    stripped = (line.strip() for line in code.splitlines())
    return {line for line in stripped if line and not line.startswith(("#", "print(", "print ("))}


RequestedBy = Literal["model", "server"]
"""Who decided that a flush happens: the model with its marker, or the server by the policy."""
_THOUGHT_BEGINS, _THOUGHT_ENDS = "<think>", "</think>"


def leaves_thought_open(text: str) -> bool:
    """Return whether ``text`` ends inside ``<think>``."""
    return text.rfind(_THOUGHT_BEGINS) > text.rfind(_THOUGHT_ENDS)


class Outcome(StrEnum):
    """Why an episode ended."""

    ANSWER = "answer"  # a box, or under ``answer: any`` a turn that leaves nothing to run
    BOXED_OUTPUT = "boxed_output"  # an observation held a box
    VOID = "void"  # the model stopped with neither an answer nor a flush
    TURN_LIMIT = "turn_limit"  # it asked for a flush in the last turn
    LENGTH = "length"  # a token budget ran out

    @property
    def is_void(self) -> bool:
        """Whether training masks the whole sample (the paper's void turn)."""
        return self not in (Outcome.ANSWER, Outcome.BOXED_OUTPUT)

    @property
    def is_truncated(self) -> bool:
        """Whether a limit cut the episode: OpenAI's finish reason ``length``."""
        return self in (Outcome.TURN_LIMIT, Outcome.LENGTH)


@dataclass(frozen=True, slots=True)
class Invocation:
    """A block that became pending. ``at_token`` counts the response's tokens up to its closing fence."""

    code: str
    at_token: int
    by_model_only: bool = False
    """The server never runs it by its own decision: it is part of a thought, or the answer itself."""
    shows_nothing_new: bool = False
    """Running it alone could show nothing new, so the server runs it only together with a later block."""

    @property
    def waits(self) -> bool:
        """Whether it must not run ahead of a flush, because there may be none."""
        return self.by_model_only or self.shows_nothing_new


@dataclass(frozen=True, slots=True)
class Flush:
    """The pending blocks to run; empty when a marker came with nothing pending."""

    blocks: tuple[Invocation, ...]
    delayed: int
    """Delayed calls among them, 0 if the flush games the count or was not requested by the model."""
    requested_by: RequestedBy = "model"


@dataclass(frozen=True, slots=True)
class Observation:
    """What was appended to the context after a flush."""

    output: str
    """The result before it was cut to fit."""
    ids: tuple[int, ...]
    text: str


class Episode:
    """One problem, from its prompt to its outcome.

    Use: while `outcome` is None and `turn_budget()` is not 0, generate after `context_ids`, `feed` the tokens
    until `turn_over` or the engine stops, then `end_turn`; if that gives a `Flush`, run it and `observe` the
    result. At the end, `finish`.

    Args:
        prompt_ids: the rendered prompt.
        policy: the limits, the marker, and when code runs.
        tokenizer: encodes observations.
        marker_id: the marker's token id.
        endings: text of each token that ends a turn.
        code_is_answer: the request asks for code, so the server runs none by its own decision.
        in_thought: the prompt ends inside ``<think>``.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        policy: DeferralPolicy,
        tokenizer: ObservationTokenizer,
        marker_id: int,
        *,
        endings: Mapping[int, str] | None = None,
        code_is_answer: bool = False,
        in_thought: bool = False,
    ) -> None:
        self.policy = policy
        self._endings = endings or {}
        self._code_is_answer = code_is_answer and policy.unflushed == "run"
        self._just_ran: set[str] = set()  # what the server ran before this turn, if it went well
        self._sampled = "<think>" if in_thought else ""  # by the model, in earlier turns
        self.transcript = Transcript(prompt_ids)
        self.turn = 1
        self.outcome: Outcome | None = None
        self._tokenizer = tokenizer
        self.marker_id = marker_id
        self._begin_turn()

    def _begin_turn(self) -> None:
        self._scanner = FenceScanner(self.policy.marker)
        self._texts: list[str] = []
        self._spans: list[BlockClosed] = []
        self._pending: list[Invocation] = []
        self.turn_over = self._marker_seen = False

    @property
    def pending(self) -> tuple[Invocation, ...]:
        """Blocks of the current turn that have not run."""
        return tuple(self._pending)

    @property
    def context_ids(self) -> list[int]:
        """Prompt and response so far."""
        return self.transcript.context_ids

    @property
    def answer(self) -> str | None:
        """Content of the last box in the response; None without one."""
        return last_boxed(self.transcript.text)

    def turn_budget(self) -> int:
        """Tokens that the next turn may sample; 0 when the episode has no room left."""
        left = self.policy.max_episode_tokens - len(self.context_ids)
        return max(min(left, self.policy.max_turn_tokens), 0)

    def finish(self) -> Outcome:
        """The outcome; `Outcome.LENGTH` for an episode that was stopped before it had one."""
        if self.outcome is None:
            self.outcome = Outcome.LENGTH
        return self.outcome

    def feed(self, ids: Sequence[int], text: str, logprobs: Sequence[float]) -> list[Invocation]:
        """Take sampled tokens; give the blocks that they closed. Sets `turn_over` at an execute marker."""
        self.transcript.add_sampled(ids, text, logprobs)
        self._texts.append(text)
        invocations = []
        for event in self._scanner.feed(text):
            if not isinstance(event, BlockClosed):
                self.turn_over = self._marker_seen = True
                continue
            by_model_only = self._code_is_answer or self._in_thought(event.start)
            nothing_new = self.policy.unflushed == "run" and (
                (event.code in self._just_ran and not self._pending) or computes_nothing(event.code)
            )
            invocation = Invocation(event.code, len(self.transcript.ids), by_model_only, nothing_new)
            self._spans.append(event)
            self._pending.append(invocation)
            invocations.append(invocation)
            self.turn_over |= self.policy.mode == "immediate" and not invocation.waits
        # The marker's token ends the turn even inside an open fence, whose code is then lost.
        self._marker_seen |= self.marker_id in ids
        self.turn_over |= self._marker_seen
        return invocations

    def end_turn(self, *, hit_length: bool = False, stopped: bool = False) -> Flush | None:
        """Close the turn: a flush to run, or None when the episode is over and `outcome` is set.

        Args:
            hit_length: the engine stopped at its token limit.
            stopped: a stop string of the client was met, which ends the episode.
        """
        text = "".join(self._texts)
        boxed = self.policy.answer == "boxed"
        after_code = text[self._spans[-1].end :] if self._spans else text
        runs_unflushed = self.policy.unflushed == "run" and not all(b.waits for b in self._pending)
        if boxed and last_boxed(after_code) is not None:
            self.outcome = Outcome.ANSWER
        elif stopped:
            self.outcome = Outcome.VOID
        elif self.turn_over or (runs_unflushed and not hit_length):
            if self.turn < self.policy.max_turns:
                return self._flush(text)
            self.outcome = Outcome.TURN_LIMIT
        elif hit_length:
            self.outcome = Outcome.LENGTH
        else:
            self.outcome = Outcome.VOID if boxed else Outcome.ANSWER
        return None

    def _flush(self, text: str) -> Flush:
        spans = self._spans
        if self._marker_seen:
            gaps = [text[a.end : b.start] for a, b in pairwise(spans)]
            return Flush(tuple(self._pending), delayed_calls([span.code for span in spans], gaps))
        if self.policy.unflushed == "run":
            self.transcript.drop_end(self._endings)
        blocks = tuple(block for block in self._pending if not block.by_model_only)
        self._just_ran = {block.code for block in blocks}
        return Flush(blocks, 0, "server")

    def _in_thought(self, offset: int) -> bool:
        """Whether what the model wrote at ``offset`` of this turn is part of a thought, for the server's
        decisions."""
        if self.policy.unflushed == "drop":
            return False
        text = self._sampled + "".join(self._texts)[:offset]
        return leaves_thought_open(text)

    def observe(self, result: FlushResult | None, *, requested_by: RequestedBy = "model") -> Observation:
        """Append the observation and begin the next turn. ``result`` is None for an empty flush.

        Where the server requested the flush at the end of a turn, the marker that the model did not write
        comes before the observation, as given tokens.
        An observation that does not fit the budget is not appended, and the episode ends.
        """
        if result is None or result.status != "ok" or requested_by == "model":
            self._just_ran = set()  # the model may try the same again
        output = NOTHING_PENDING if result is None else result_text(result, self.policy)
        ids = observation_ids(output, self._tokenizer, self.policy)
        if (
            requested_by == "server"
            and self.policy.mode == "deferred"
            and self.policy.observation == "result"
        ):
            ids = [self.marker_id, *ids]
        if len(self.context_ids) + len(ids) > self.policy.max_episode_tokens:
            self.outcome = Outcome.LENGTH
            return Observation(output, (), "")
        text = self._tokenizer.decode(ids)
        self.transcript.add_observation(ids, text)
        if self.policy.answer == "boxed" and last_boxed(output) is not None:
            self.outcome = Outcome.BOXED_OUTPUT
        self.turn += 1
        self._sampled += "".join(self._texts)
        self._begin_turn()
        return Observation(output, tuple(ids), text)
