"""The deferred execution protocol: the state machine of one episode, with its transcript.

An episode is one problem, from the prompt to an outcome. It consists of turns:

1. The model samples text. Each Python block that it closes becomes *pending* (an `Invocation`). It does not
   run yet.
2. The turn ends when the model writes the execute marker, ends its turn, or reaches a limit.
3. After a marker, all pending blocks run in order as one script. This is a *flush*. Its output is appended to
   the context as an *observation*, and the next turn begins. All flushes of an episode share one namespace.
4. A turn that ends without a flush ends the episode. `Outcome` lists the reasons.

Blocks that wait for a flush together with later ones are *delayed*. Training rewards their number, see
`delayed_calls`.

`DeferralPolicy` changes steps 1 and 2: with ``mode: immediate`` every closed block ends the turn; with
``unflushed: run`` the server flushes blocks that are still pending when the model ends its turn.

The client's functions share the reply with the code. Models call them in the Hermes format, whose opening tag
is the default execute marker. With blocks pending, the marker is a flush, and a call that the model wanted
follows the observation. With none pending, it begins a call. No look-ahead is needed. Under ``mode:
immediate`` blocks run as they close, and the tag always begins a call. After a call the server runs no code
on its own: the client has to answer first.

This module does no I/O and has no clock. The caller, usually ``service.episode.runner``, connects it to an
engine and a sandbox::

    episode = Episode(prompt_ids, policy, tokenizer, marker_id)
    while episode.outcome is None and (budget := episode.turn_budget()):
        for ids, text, logprobs in sample(episode.context_ids, budget):
            episode.feed(ids, text, logprobs)
            if episode.turn_over:
                break
        flush = episode.end_turn()
        if flush is not None:
            result = run(flush.blocks) if flush.blocks else None
            episode.observe(result, requested_by=flush.requested_by)
    outcome = episode.finish()
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final, Literal

from service.deferral.answer import last_boxed
from service.deferral.call_span import CALL_OPEN
from service.deferral.code_request import computes_nothing
from service.deferral.observation import (
    NOTHING_PENDING,
    FlushResult,
    ObservationTokenizer,
    effects_note,
    observation_ids,
    result_text,
)
from service.deferral.policy import DeferralPolicy
from service.deferral.scanner import BlockClosed, CallEnded, CallTagSeen, FenceScanner, MarkerSeen


class Transcript:
    """Tokens of one episode, exactly as they were sampled or inserted. The input of the loss.

    ``ids``, ``mask``, ``logprobs`` and ``versions`` are aligned, with one item per token of the response.

    Attributes:
        prompt_ids: the prompt.
        ids: the response: sampled tokens and observations.
        mask: 1 for sampled tokens, 0 for inserted ones: observations and forced tokens.
        logprobs: the engine's log-probability of each sampled token; 0.0 for inserted ones.
        versions: version of the weights that sampled each token; 0 for inserted ones.
        text: text of the response.
        dropped_ends: sampled end-of-turn tokens that were removed from the context because the server then
            ran pending code, as (position in ``ids``, token id, log-probability).
    """

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self.prompt_ids = tuple(prompt_ids)
        self.ids: list[int] = []
        self.mask: list[int] = []
        self.logprobs: list[float] = []
        self.versions: list[int] = []
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

    def add_sampled(self, ids: Sequence[int], text: str, logprobs: Sequence[float], version: int = 0) -> None:
        self._add(ids, text, 1, logprobs, version)

    def add_observation(self, ids: Sequence[int], text: str) -> None:
        self._add(ids, text, 0, [0.0] * len(ids), 0)

    def add_forced(self, ids: Sequence[int], text: str) -> None:
        """Add tokens that the server wrote in the model's place. Like observations, they aren't trained."""
        self._add(ids, text, 0, [0.0] * len(ids), 0)

    def drop_end(self, endings: Mapping[int, str]) -> None:
        """Remove a sampled end-of-turn token from the end of the response, if there is one.

        Args:
            endings: text of each token that ends a turn.
        """
        if not self.ids or self.ids[-1] not in endings or not self.mask[-1]:
            return
        token, logprob = self.ids.pop(), self.logprobs.pop()
        self.mask.pop()
        self.versions.pop()
        self.dropped_ends.append((len(self.ids), token, logprob))
        self._texts[-1] = self._texts[-1].removesuffix(endings[token])

    def _add(self, ids: Sequence[int], text: str, mask: int, logprobs: Sequence[float], version: int) -> None:
        if len(logprobs) != len(ids):
            raise ValueError(f"{len(ids)} ids but {len(logprobs)} logprobs")
        self.ids.extend(ids)
        self.mask.extend([mask] * len(ids))
        self.logprobs.extend(logprobs)
        self.versions.extend([version] * len(ids))
        self._texts.append(text)


def delayed_calls(codes: Sequence[str], gaps: Sequence[str]) -> int:
    """Return the number of delayed calls of one flush: all of its blocks except the last.

    Training rewards delayed calls, so a flush that only inflates their number counts as 0. It does if two
    blocks have no text between them, if a block is empty, or if a block repeats the earlier ones: all of its
    lines occur in them, or all of theirs in it. Comments and prints are excluded from this comparison, and a
    block of nothing else repeats nothing.

    Args:
        codes: the flushed blocks in order.
        gaps: the text between consecutive blocks; one item less than ``codes``.
    """
    if any(not gap.strip() for gap in gaps) or any(not code.strip() for code in codes):
        return 0
    earlier: set[str] = set()
    for code in codes:
        lines = _significant_lines(code)
        if lines and earlier and (lines <= earlier or lines >= earlier):
            return 0
        earlier |= lines
    return max(len(codes) - 1, 0)


def _significant_lines(code: str) -> set[str]:
    stripped = (line.strip() for line in code.splitlines())
    return {line for line in stripped if line and not line.startswith(("#", "print(", "print ("))}


RequestedBy = Literal["model", "server"]
"""Origin of a flush: the model, with its marker, or the server, by the policy."""
_THOUGHT_START, _THOUGHT_END = "<think>", "</think>"


def ends_in_thought(text: str) -> bool:
    """Return whether ``text`` ends inside ``<think>``."""
    return text.rfind(_THOUGHT_START) > text.rfind(_THOUGHT_END)


class Outcome(StrEnum):
    """Reason for the end of an episode."""

    ANSWER = "answer"  # a boxed answer, or with ``answer: any`` a turn that leaves nothing to run
    BOXED_OUTPUT = "boxed_output"  # an observation contains a boxed answer
    CALL = "call"  # the model called functions of the client, which answers in the next request
    VOID = "void"  # the model ended its turn without an answer or a flush
    TURN_LIMIT = "turn_limit"  # the model requested a flush in its last turn
    LENGTH = "length"  # a token budget was used up

    @property
    def is_void(self) -> bool:
        """Whether training masks the whole sample (the paper's "void turn")."""
        return self not in (Outcome.ANSWER, Outcome.BOXED_OUTPUT)

    @property
    def is_truncated(self) -> bool:
        """Whether a limit cut the episode: OpenAI's finish reason ``length``."""
        return self in (Outcome.TURN_LIMIT, Outcome.LENGTH)


@dataclass(frozen=True, slots=True)
class Invocation:
    """A pending block."""

    code: str
    at_token: int
    """Number of tokens of the response up to the block's closing fence."""
    by_model_only: bool = False
    """Only a marker runs it, never the server's own decision: it is part of a thought or the answer
    itself."""
    shows_nothing_new: bool = False
    """Running it alone would show nothing new, so the server runs it only together with a later block."""

    @property
    def only_at_flush(self) -> bool:
        """Whether it must not start before the flush, because there may be none."""
        return self.by_model_only or self.shows_nothing_new


@dataclass(frozen=True, slots=True)
class Flush:
    """A request to run the pending blocks. ``blocks`` is empty if a marker came with nothing pending."""

    blocks: tuple[Invocation, ...]
    delayed: int
    """Number of delayed calls, see ``delayed_calls``; 0 if the server requested the flush."""
    requested_by: RequestedBy = "model"


@dataclass(frozen=True, slots=True)
class Observation:
    """Text appended to the context after a flush. Empty if it did not fit the token budget."""

    output: str
    """The output before truncation."""
    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class CallEdge:
    """Begin or end of a call in sampled text."""

    at: int
    """Offset in the text; a call begins after its opening tag."""
    opens: bool


_CALLED_NAME: Final = re.compile(r'"name"\s*:\s*"([^"\\]*)"')


class Episode:
    """State machine of one episode. See the module for the order of calls.

    Args:
        prompt_ids: the rendered prompt.
        policy: limits, marker, and when code runs.
        tokenizer: encodes observations.
        marker_id: token id of the marker.
        endings: text of each token that ends a turn.
        code_is_answer: the request asks for code, so the server requests no flush itself.
        in_thought: the prompt ends inside ``<think>``.
        functions: names of the client's functions that the model may call.
        parallel_calls: False ends the episode after the first call.

    Attributes:
        outcome: None while the episode continues.
        turn: number of the current turn, from 1.
        turn_over: the current turn must end: a marker was sampled, a block closed in immediate mode, or the
            only call is complete.
        call_edges: begins and ends of calls in the text of the last ``feed``, as offsets in it.
        transcript: the tokens so far.
        has_foreign_output: outputs may contain text of other parties, because code has called tools. A box in
            an output is then not an answer. Set by the caller.
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
        functions: Collection[str] = (),
        parallel_calls: bool = True,
    ) -> None:
        self.policy = policy
        self._functions = frozenset(functions)
        self._parallel_calls = parallel_calls
        self._has_called = False
        self.call_edges: list[CallEdge] = []
        self._endings = endings or {}
        self._code_is_answer = code_is_answer and policy.unflushed == "run"
        self._just_ran: set[str] = set()  # blocks that the server ran before this turn, if they succeeded
        self._earlier_text = "<think>" if in_thought else ""  # sampled in earlier turns
        self.transcript = Transcript(prompt_ids)
        self.turn = 1
        self.outcome: Outcome | None = None
        self.has_foreign_output = False
        self._tokenizer = tokenizer
        self.marker_id = marker_id
        self._begin_turn()

    def _begin_turn(self) -> None:
        self._scanner = FenceScanner(self.policy.marker, call_tag=CALL_OPEN if self._functions else None)
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
        """Content of the last boxed answer in the response; None if there is none."""
        if self.has_foreign_output:
            return last_boxed(self._earlier_text + "".join(self._texts))
        return last_boxed(self.transcript.text)

    def turn_budget(self) -> int:
        """Return how many tokens the next turn may sample; 0 if the episode has used its budget."""
        left = self.policy.max_episode_tokens - len(self.context_ids)
        return max(min(left, self.policy.max_turn_tokens), 0)

    def finish(self) -> Outcome:
        """Return the outcome. It becomes `Outcome.LENGTH` if the episode has none yet."""
        if self.outcome is None:
            self.outcome = Outcome.LENGTH
        return self.outcome

    def feed(
        self, ids: Sequence[int], text: str, logprobs: Sequence[float], version: int = 0
    ) -> list[Invocation]:
        """Add tokens sampled with one version of the weights. Return the blocks that they close.

        Sets `turn_over` if the turn must end.
        """
        self.transcript.add_sampled(ids, text, logprobs, version)
        self._texts.append(text)
        invocations = []
        self.call_edges = []
        start = self._scanner.offset
        for event in self._scanner.scan(text):
            if not isinstance(event, BlockClosed):
                self._add_tag(event, start, is_token=self.marker_id in ids)
                continue
            by_model_only = self._code_is_answer or self._has_called or self._in_thought(event.start)
            nothing_new = self.policy.unflushed == "run" and (
                (event.code in self._just_ran and not self._pending) or computes_nothing(event.code)
            )
            invocation = Invocation(event.code, len(self.transcript.ids), by_model_only, nothing_new)
            self._spans.append(event)
            self._pending.append(invocation)
            invocations.append(invocation)
            self.turn_over |= self.policy.mode == "immediate" and not invocation.only_at_flush
        if self.marker_id in ids and (not self._is_call_tag or self._scanner.in_code):
            self._add_marker_token(text)
        self.turn_over |= self._marker_seen
        return invocations

    def _add_marker_token(self, text: str) -> None:
        """Process the marker's token. It also counts inside an open Python fence; that block is then lost."""
        if not self._is_call_tag or (self._pending and self.marker_flushes):
            self._marker_seen = True
        elif self.marker_flushes and text.endswith(CALL_OPEN):
            self._scanner.open_call()
            self.call_edges.append(CallEdge(len(text), opens=True))

    @property
    def has_functions(self) -> bool:
        """Whether the model may call functions."""
        return bool(self._functions)

    @property
    def marker_flushes(self) -> bool:
        """Whether a marker can request a flush. If not, the engine need not stop at it."""
        return not (self._is_call_tag and self.policy.mode == "immediate")

    @property
    def _is_call_tag(self) -> bool:
        """Whether the marker is also the opening tag of calls."""
        return bool(self._functions) and self.policy.marker == CALL_OPEN

    def _add_tag(self, event: MarkerSeen | CallTagSeen | CallEnded, start: int, *, is_token: bool) -> None:
        """Process a tag in text that begins at offset ``start`` of the turn.

        Args:
            is_token: the text contains the marker as a token, not just its spelling.
        """
        match event:
            case MarkerSeen():
                self.turn_over = self._marker_seen = True
            case CallTagSeen(end, in_fence):
                if self._is_call_tag and self._pending and self.marker_flushes:
                    self._marker_seen |= is_token or not in_fence
                    self.turn_over |= self._marker_seen
                elif not ends_in_thought(self._earlier_text + "".join(self._texts)[:end]):
                    self._scanner.open_call()
                    self.call_edges.append(CallEdge(end - start, opens=True))
            case CallEnded(call, end, is_complete):
                self.call_edges.append(CallEdge(end - start, opens=False))
                name = _CALLED_NAME.search(call)
                if is_complete and name is not None and name[1] in self._functions:
                    self._has_called = True
                    self.turn_over |= not self._parallel_calls

    def force(self, ids: Sequence[int], text: str) -> None:
        """Add tokens that the server writes in the model's place, such as the end of a thought.

        An open code block is abandoned: the model did not finish it.
        """
        self.transcript.add_forced(ids, text)
        self._texts.append(text)
        self._scanner.abandon_block()
        self._scanner.feed(text)

    def begin_answer(self, ids: Sequence[int], text: str) -> bool:
        """Append ``text``, after which the model writes its final answer. Call it after the last turn.

        Return False if an answer doesn't fit the episode's token budget; `outcome` is then set.
        """
        self.transcript.drop_end(self._endings)
        if len(self.context_ids) + len(ids) >= self.policy.max_episode_tokens:
            self.outcome = Outcome.LENGTH
            return False
        self.transcript.add_forced(ids, text)
        self.outcome = None
        return True

    def add_answer(
        self, ids: Sequence[int], text: str, logprobs: Sequence[float], version: int, finish: str | None
    ) -> None:
        """Add sampled tokens of the final answer. Code in it never runs.

        Args:
            ids: the tokens.
            text: their text.
            logprobs: their log-probabilities.
            version: version of the weights.
            finish: ``stop`` or ``length`` with the last tokens, which sets `outcome`.
        """
        self.transcript.add_sampled(ids, text, logprobs, version)
        if finish is not None:
            self.outcome = Outcome.ANSWER if finish == "stop" else Outcome.LENGTH

    @property
    def in_thought(self) -> bool:
        """Whether the response so far ends inside ``<think>``."""
        return ends_in_thought(self._earlier_text + "".join(self._texts))

    def end_turn(self, *, hit_length: bool = False, stopped: bool = False) -> Flush | None:
        """End the turn. Return the flush to run, or None if the episode is over and `outcome` is set.

        Args:
            hit_length: the engine stopped at its token limit.
            stopped: a stop string of the client was found, which ends the episode.
        """
        text = "".join(self._texts)
        boxed = self.policy.answer == "boxed"
        after_code = text[self._spans[-1].end :] if self._spans else text
        runs_unflushed = self.policy.unflushed == "run" and not all(b.only_at_flush for b in self._pending)
        if self._has_called and not self._marker_seen:
            self.outcome = Outcome.LENGTH if hit_length else Outcome.CALL
        elif boxed and last_boxed(after_code) is not None:
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
        """Return whether the text at ``offset`` of this turn is in a thought that the server must not run."""
        if self.policy.unflushed == "drop":
            return False  # the server requests no flush anyway
        text = self._earlier_text + "".join(self._texts)[:offset]
        return ends_in_thought(text)

    def observe(
        self,
        result: FlushResult | None,
        *,
        requested_by: RequestedBy = "model",
        effects: Sequence[str] = (),
    ) -> Observation:
        """Append the observation and begin the next turn.

        If the server requested the flush in deferred mode, the marker that the model did not write is
        inserted before the observation. An observation that exceeds the episode's token budget is not
        appended; the episode then ends.

        Args:
            result: result of the flush; None for an empty flush.
            requested_by: `Flush.requested_by`.
            effects: calls of tools that took effect, listed if the flush failed.
        """
        if result is None or result.status != "ok" or requested_by == "model":
            self._just_ran = set()  # the model may run the same code again
        output = NOTHING_PENDING if result is None else result_text(result, self.policy)
        if result is not None and result.status != "ok":
            output += effects_note(effects)
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
        if self.policy.answer == "boxed" and not self.has_foreign_output and last_boxed(output) is not None:
            self.outcome = Outcome.BOXED_OUTPUT
        self.turn += 1
        self._earlier_text += "".join(self._texts)
        self._begin_turn()
        return Observation(output, tuple(ids), text)
