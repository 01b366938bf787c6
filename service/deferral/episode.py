"""The state machine of one episode: no I/O, no clock. A driver feeds it tokens and sandbox results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from service.deferral.answer import BOX, last_boxed
from service.deferral.delay import delayed_calls
from service.deferral.fences import BlockClosed, FenceScanner
from service.deferral.observation import (
    NOTHING_PENDING,
    FlushResult,
    ObservationTokenizer,
    observation_ids,
    result_text,
)
from service.deferral.policy import DeferralPolicy
from service.deferral.transcript import Transcript


class Outcome(StrEnum):
    """Why an episode ended."""

    ANSWER = "answer"
    BOXED_OUTPUT = "boxed_output"  # an observation held a box
    VOID = "void"  # the model stopped with neither an answer nor a flush
    TURN_LIMIT = "turn_limit"  # it asked for a flush in the last turn
    LENGTH = "length"  # a token budget ran out

    @property
    def is_void(self) -> bool:
        """Whether training masks the whole sample (algorithm.md, section 1, void turn)."""
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


@dataclass(frozen=True, slots=True)
class Flush:
    """The pending blocks that a marker releases; empty when nothing was pending."""

    blocks: tuple[Invocation, ...]
    delayed: int
    """Delayed calls among them, 0 if the flush games the count."""


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
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        policy: DeferralPolicy,
        tokenizer: ObservationTokenizer,
        marker_id: int,
    ) -> None:
        self.policy = policy
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
        self.turn_over = False

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
                self.turn_over = True
                continue
            invocation = Invocation(event.code, at_token=len(self.transcript.ids))
            self._spans.append(event)
            self._pending.append(invocation)
            invocations.append(invocation)
            self.turn_over |= self.policy.mode == "immediate"
        # The marker's token ends the turn even inside an open fence, whose code is then lost.
        self.turn_over |= self.marker_id in ids
        return invocations

    def end_turn(self, *, hit_length: bool = False, stopped: bool = False) -> Flush | None:
        """Close the turn: a flush to run, or None when the episode is over and `outcome` is set.

        Args:
            hit_length: the engine stopped at its token limit.
            stopped: a stop string of the client was met, which ends the episode.
        """
        text = "".join(self._texts)
        after_code = text[self._spans[-1].end :] if self._spans else text
        if last_boxed(after_code) is not None:
            self.outcome = Outcome.ANSWER
        elif stopped:
            self.outcome = Outcome.VOID
        elif self.turn_over and self.turn < self.policy.max_turns:
            return self._flush(text)
        elif self.turn_over:
            self.outcome = Outcome.TURN_LIMIT
        else:
            self.outcome = Outcome.LENGTH if hit_length else Outcome.VOID
        return None

    def _flush(self, text: str) -> Flush:
        spans = self._spans
        gaps = [text[a.end : b.start] for a, b in pairwise(spans)]
        return Flush(tuple(self._pending), delayed_calls([span.code for span in spans], gaps))

    def observe(self, result: FlushResult | None) -> Observation:
        """Append the observation and begin the next turn. ``result`` is None for an empty flush.

        Where the observation does not fit the budget it is not appended, and the episode ends.
        """
        output = NOTHING_PENDING if result is None else result_text(result)
        ids = observation_ids(output, self._tokenizer)
        if len(self.context_ids) + len(ids) > self.policy.max_episode_tokens:
            self.outcome = Outcome.LENGTH
            return Observation(output, (), "")
        text = self._tokenizer.decode(ids)
        self.transcript.add_observation(ids, text)
        if BOX in output:
            self.outcome = Outcome.BOXED_OUTPUT
        self.turn += 1
        self._begin_turn()
        return Observation(output, tuple(ids), text)
