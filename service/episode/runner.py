"""Run episodes: the one loop behind every served request, training rollout and evaluation.

`EpisodeRunner` turns a prompt into a stream of `service.episode.events`. It alternates between the engine,
which samples until the model asks for the output of its code, and the sandbox, which runs that code.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

from service.deferral.call_span import CALL_OPEN
from service.deferral.episode import CallEdge, Episode, Flush, Invocation, Outcome, ends_in_thought
from service.deferral.policy import DeferralPolicy
from service.deferral.prompt import with_instruction
from service.engines.base import Engine, Sampling, TokenChunk
from service.episode.block_queue import BlockQueue, EventFeed
from service.episode.events import (
    AnswerStarted,
    CallClosed,
    CallOpened,
    EpisodeEvent,
    ExecutedTool,
    Finished,
    FlushFinished,
    FlushStarted,
    FlushSuspended,
    Invoked,
    InvokedBlock,
    Observed,
    Sampled,
)
from service.episode.stop_strings import StopStringHit, until_stop
from service.episode.thought_limit import CLOSING, ThoughtLimit, limit_thought
from service.episode.tool_calls import RecordedTools, call_text
from service.sandbox.base import ExecutionResult, Sandbox, Session, SessionLimits
from service.tools.approval import Approvals
from service.tools.base import ToolHost, ToolSpec
from service.tools.stubs import listing

Messages = Sequence[dict[str, object]]


@dataclass(frozen=True, slots=True)
class EpisodeRunner:
    """An engine, a sandbox and a policy, and the loop that makes episodes of them.

    The server holds one runner and derives others from it with `dataclasses.replace`; rollouts and evaluation
    build their own.
    """

    engine: Engine
    sandbox: Sandbox
    policy: DeferralPolicy
    """Policy of the checkpoint; an episode may be started under another."""
    sampling: Sampling
    """Defaults for requests that don't set a field."""
    end_token_ids: frozenset[int] | None = None
    """Tokens that end a reply; None for the engine's own."""
    clock: Callable[[], float] = time.time
    """Source of the events' times, in Unix seconds."""

    @property
    def endings(self) -> dict[int, str]:
        """Text of each token that ends a reply, by token id."""
        ids = self.engine.eos_token_ids if self.end_token_ids is None else self.end_token_ids
        return {token: self.engine.tokenizer.decode([token]) for token in ids}

    def render(
        self,
        messages: Messages,
        *,
        deferral: bool,
        thinking: bool = False,
        continue_final: bool = False,
        tools: Sequence[dict[str, object]] = (),
        code_tools: Sequence[ToolSpec] = (),
    ) -> list[int]:
        """Return the prompt ids of ``messages``.

        Args:
            messages: turns in the chat template's form.
            deferral: code in the reply will run: the policy's instruction is added.
            thinking: let the model think first.
            continue_final: leave the last message open, for the model to continue it.
            tools: functions of the client, in OpenAI's form, that the model may call.
            code_tools: tools that code may call. With deferral they are listed beside the instruction.

        Raises:
            ValueError: ``messages`` has neither a user nor a system turn.
            EngineError: the template rejected the messages.
        """
        turns = list(messages)
        if deferral:
            listed = listing(code_tools) if code_tools else ""
            turns = with_instruction(messages, self.policy.prompt, listed, functions=bool(tools))
        options: dict[str, object] = {"enable_thinking": thinking}
        if tools:
            options["tools"] = list(tools)
        return self.engine.tokenizer.render_chat(
            turns, template_kwargs=options, continue_final=continue_final
        )

    def room(self, prompt_ids: Sequence[int], *, deferral: bool) -> int:
        """Return how many tokens may follow the prompt; 0 or less if it doesn't fit."""
        limit = self.engine.context_length
        if deferral:
            limit = min(limit, self.policy.max_episode_tokens)
        return limit - len(prompt_ids)

    def start(
        self,
        prompt_ids: Sequence[int],
        policy: DeferralPolicy | None = None,
        *,
        code_is_answer: bool = False,
        functions: Collection[str] = (),
        parallel_calls: bool = True,
    ) -> Episode:
        """Return a new episode, ready for `run`.

        Args:
            prompt_ids: the rendered prompt.
            policy: limits and marker; None for the runner's own.
            code_is_answer: the request asks for code; see `service.deferral.code_request`.
            functions: names of the client's functions that the model may call.
            parallel_calls: False ends the episode after the first call.

        Raises:
            ValueError: the tokenizer has no execute marker, so the checkpoint can't defer.
        """
        policy = policy or self.policy
        tokenizer = self.engine.tokenizer
        marker_id = tokenizer.token_id(policy.marker)
        if marker_id is None:
            raise ValueError(f"the model's tokenizer has no token {policy.marker!r}, so it can't defer")
        # The engine would reject the next turn of an episode that outgrew the model.
        limit = min(policy.max_episode_tokens, self.engine.context_length)
        tail = prompt_ids[-1024:] if policy.unflushed == "run" else prompt_ids[-8:]
        in_thought = ends_in_thought(tokenizer.decode(tail).rpartition("<|im_start|>")[2])
        return Episode(
            prompt_ids,
            policy.model_copy(update={"max_episode_tokens": limit}),
            tokenizer,
            marker_id,
            endings=self.endings,
            code_is_answer=code_is_answer,
            in_thought=in_thought,
            functions=functions,
            parallel_calls=parallel_calls,
        )

    async def run(
        self,
        episode: Episode,
        sampling: Sampling,
        *,
        episode_id: str,
        eager: bool = True,
        prewarm: bool = False,
        stop: Sequence[str] = (),
        tools: ToolHost | None = None,
        tool_wait_s: float = SessionLimits().tool_wait_s,
        approvals: Approvals | None = None,
        thought: ThoughtLimit | None = None,
        answer: str | None = None,
        open_session: Callable[[SessionLimits, ToolHost | None], Session] | None = None,
        live_output: bool = False,
    ) -> AsyncGenerator[EpisodeEvent, None]:
        """Run ``episode`` to its end. Closing the generator cancels the engine and closes the session.

        Args:
            episode: from `start`. Its transcript grows with the events.
            sampling: ``max_tokens`` bounds the sampled tokens of the whole episode. With a seed, each turn
                gets its own seed.
            episode_id: prefix of the flushes' ids.
            eager: start blocks in the background as soon as they are closed.
            prewarm: request a container immediately, because blocks are likely.
            stop: strings that end the episode where the model writes them. Pending blocks then never run.
                With ``answer`` they apply to the final answer only.
            tools: tools that code may call.
            tool_wait_s: time that a flush may wait for them, in seconds.
            approvals: decides about their calls that need approval; None denies these calls.
            thought: limits the thought of the reply; None for no limit.
            answer: text that introduces a final answer after the last turn. A constraint of ``sampling``
                applies to this answer and not to the turns before. None for no separate answer.
            open_session: opens the session of the code; None for one of the sandbox's own.
            live_output: yield the output of the code while a flush runs. Nothing else depends on it.

        Raises:
            InvalidRequestError: the engine can't enforce the constraint; raised before the first event.
            EngineError: the engine failed. A failed sandbox raises nothing: the model reads an error result.
        """
        clock = self.clock
        endings = self.endings
        stop_ids = endings.keys() | ({episode.marker_id} if episode.marker_flushes else set())
        turn_stops = () if answer is not None else stop
        limits = SessionLimits(run_limit_s=episode.policy.run_limit_s, eager=eager, tool_wait_s=tool_wait_s)
        feed = EventFeed()
        calls = None if tools is None else RecordedTools(tools, clock, feed, approvals)
        queue = BlockQueue((open_session or self.sandbox.session)(limits, calls))
        flushes = 0
        unflushed: tuple[InvokedBlock, ...] = ()
        tokens_left = sampling.max_tokens
        free = sampling if answer is None else sampling.without_structure()
        engine_calls = count(1)
        try:
            if prewarm:
                queue.prewarm()
            if answer is not None:
                await self._check_structure(episode.context_ids[:1], sampling)
            while episode.outcome is None and (budget := min(episode.turn_budget(), tokens_left)) > 0:
                tool_id = f"{episode_id}_{flushes}"
                blocks: list[InvokedBlock] = []
                waiting: list[tuple[Invocation, InvokedBlock]] = []
                hit_length = stopped = False
                stream = self._sample_turn(
                    episode,
                    free,
                    _Turn(engine_calls, budget, sampling.max_tokens - tokens_left),
                    stop_ids,
                    turn_stops,
                    thought,
                )
                async with aclosing(stream) as chunks:
                    async for chunk in chunks:
                        if isinstance(chunk, StopStringHit):
                            stopped = True
                            yield chunk
                            continue
                        hit_length = chunk.finish_reason == "length"
                        if chunk.is_forced:
                            yield Sampled(chunk)
                            episode.force(chunk.ids, chunk.text)
                            continue
                        tokens_left -= len(chunk.ids)
                        invocations = episode.feed(
                            chunk.ids, chunk.text, chunk.logprobs, chunk.weights_version
                        )
                        if episode.call_edges:
                            for event in _cut_at_calls(chunk, episode.call_edges):
                                yield event
                        else:
                            yield Sampled(chunk)
                        for invocation in invocations:
                            block = InvokedBlock(invocation.code, invocation.at_token, clock())
                            # A block that may never run is not started early, nor are the blocks after it.
                            if waiting or invocation.only_at_flush:
                                waiting.append((invocation, block))
                                continue
                            queue.add(block.code)
                            blocks.append(block)
                            yield Invoked(tool_id, len(blocks) - 1, block)
                        if calls is not None:
                            for news in feed.take():
                                yield news
                        if episode.turn_over:
                            break
                flush = episode.end_turn(hit_length=hit_length, stopped=stopped)
                if flush is None:
                    unflushed = (
                        *blocks,
                        *(block for invocation, block in waiting if not invocation.only_at_flush),
                    )
                    break
                for invocation, block in waiting:
                    if flush.requested_by == "model" or not invocation.by_model_only:
                        queue.add(block.code)
                        blocks.append(block)
                        yield Invoked(tool_id, len(blocks) - 1, block)
                result: ExecutionResult | None = None
                if flush.blocks:
                    yield FlushStarted(tool_id, tuple(blocks), flush.requested_by)
                    flushed_at = clock()
                    if calls is None and not live_output:
                        result = await queue.flush()
                    else:
                        on_output = partial(feed.add_output, tool_id) if live_output else None
                        flushing = asyncio.ensure_future(queue.flush(on_output))
                        try:
                            while not flushing.done():
                                waits = None if calls is None else calls.waits_for_client
                                async with aclosing(feed.until(flushing, waits)) as during:
                                    async for news in during:
                                        yield news
                                if calls is not None and not flushing.done():
                                    await queue.suspend()
                                    if not flushing.done() and calls.waits_for_client():
                                        yield FlushSuspended(
                                            tool_id, tuple(blocks), calls.running, calls.open_approvals
                                        )
                                    await queue.resume()
                            for news in feed.take():
                                yield news
                            result = await flushing
                        finally:
                            flushing.cancel()
                            await asyncio.gather(flushing, return_exceptions=True)
                    flushes += 1
                made = () if calls is None or result is None else calls.take()
                episode.has_foreign_output |= bool(made)
                observation = episode.observe(
                    result,
                    requested_by=flush.requested_by,
                    effects=[call_text(call) for call in made if call.took_effect],
                )
                if result is not None:
                    tool = _executed(tool_id, blocks, flush, observation.output, result, flushed_at)
                    tool = replace(tool, calls=made)
                    yield FlushFinished(replace(tool, container_wait_ms=queue.container_wait_s * 1000))
                if observation.ids:
                    yield Observed(observation.ids, observation.text)
            unanswered = (None, Outcome.LENGTH, Outcome.CALL)
            if answer is not None and tokens_left > 0 and episode.outcome not in unanswered:
                last = _for_turn(sampling, episode.turn + 1, tokens_left, sampling.max_tokens - tokens_left)
                async for event in self._answer(episode, last, answer, stop, endings):
                    yield event
            yield Finished(episode.finish(), unflushed)
        finally:
            await queue.close()

    async def _check_structure(self, ids: Sequence[int], sampling: Sampling) -> None:
        """Sample one token, so that an invalid constraint is reported before any code runs."""
        call = replace(sampling, max_tokens=1, min_tokens=0, logprobs=False, top_logprobs=0)
        async with aclosing(self.engine.generate(ids, call, frozenset(self.endings))) as chunks:
            async for _ in chunks:
                pass

    async def _answer(
        self, episode: Episode, sampling: Sampling, lead: str, stop: Sequence[str], endings: Mapping[int, str]
    ) -> AsyncGenerator[EpisodeEvent, None]:
        """Append ``lead`` and generate the final answer after it."""
        encode = self.engine.tokenizer.encode
        ids = encode(lead, allow_special=False)  # it may quote the client's schema
        if episode.in_thought:
            ids, lead = encode(CLOSING, allow_special=True) + ids, CLOSING + lead
        if not episode.begin_answer(ids, lead):
            return
        yield AnswerStarted(tuple(ids), lead)
        room = min(sampling.max_tokens, episode.policy.max_episode_tokens - len(episode.context_ids))
        sampling = replace(sampling, max_tokens=room, min_tokens=min(sampling.min_tokens, room))
        stream = self._generate(episode.context_ids, sampling, endings.keys(), stop, endings)
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                yield chunk if isinstance(chunk, StopStringHit) else Sampled(chunk)
                if not isinstance(chunk, StopStringHit):
                    episode.add_answer(
                        chunk.ids, chunk.text, chunk.logprobs, chunk.weights_version, chunk.finish_reason
                    )
        if episode.outcome is None:  # ended by a stop string
            episode.outcome = Outcome.ANSWER

    async def complete(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        *,
        stop: Sequence[str] = (),
        thought: ThoughtLimit | None = None,
        answer: str | None = None,
    ) -> AsyncGenerator[EpisodeEvent, None]:
        """Generate one turn without deferral: the marker is a token like any other and no code runs.

        Closing the generator cancels the engine.

        Args:
            prompt_ids: the rendered prompt.
            sampling: ``max_tokens`` bounds the sampled tokens.
            stop: strings that end the reply.
            thought: limits the thought of the reply; None for no limit.
            answer: text that introduces a final answer, to which the constraint of ``sampling`` applies,
                after a turn without function calls. None for no separate answer.

        Raises:
            InvalidRequestError: the engine can't enforce the constraint; raised before the first event.
            EngineError: the engine failed.
        """
        outcome, endings = Outcome.VOID, self.endings
        ids, texts, is_stopped = list(prompt_ids), [""], False
        if answer is not None:
            await self._check_structure(ids[:1], sampling)
        free = sampling if answer is None else sampling.without_structure()
        stream = self._generate(prompt_ids, free, endings.keys(), stop, endings, thought)
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, StopStringHit):
                    is_stopped = True
                    yield chunk
                    continue
                yield Sampled(chunk)
                if answer is not None:
                    ids += chunk.ids
                    texts.append(chunk.text)
                if chunk.finish_reason == "length":
                    outcome = Outcome.LENGTH
        left = sampling.max_tokens - (len(ids) - len(prompt_ids))
        called = is_stopped or CALL_OPEN in "".join(texts)
        if answer is None or called or outcome is Outcome.LENGTH:
            yield Finished(outcome)
            return
        if ids[-1] in endings:
            ids.pop()
        lead = self.engine.tokenizer.encode(answer, allow_special=False)  # it may quote the client's schema
        left = min(left, self.room([*ids, *lead], deferral=False))
        if left < 1:
            yield Finished(Outcome.LENGTH)
            return
        yield AnswerStarted(tuple(lead), answer)
        last = replace(sampling, max_tokens=left, min_tokens=min(sampling.min_tokens, left))
        async for event in self.complete([*ids, *lead], last, stop=stop):
            yield event

    def _sample_turn(
        self,
        episode: Episode,
        sampling: Sampling,
        turn: _Turn,
        stop_ids: Collection[int],
        stop: Sequence[str],
        thought: ThoughtLimit | None,
    ) -> AsyncGenerator[TokenChunk | StopStringHit, None]:
        if episode.has_functions:
            return self._sample_with_calls(episode, sampling, turn, stop_ids, stop, thought)
        call_sampling = turn.sampling(sampling)
        return self._generate(episode.context_ids, call_sampling, stop_ids, stop, self.endings, thought)

    async def _sample_with_calls(
        self,
        episode: Episode,
        sampling: Sampling,
        turn: _Turn,
        stop_ids: Collection[int],
        stop: Sequence[str],
        thought: ThoughtLimit | None,
    ) -> AsyncGenerator[TokenChunk | StopStringHit, None]:
        """Sample one turn. A marker that begins a call stops the engine, but not the turn.

        The caller feeds each chunk to ``episode`` and closes the generator when the turn is over.
        """
        endings = self.endings
        is_stopped = False
        while True:
            call_sampling = turn.sampling(sampling)
            stream = self._generate(episode.context_ids, call_sampling, stop_ids, stop, endings, thought)
            at_marker = False
            async with aclosing(stream) as chunks:
                async for chunk in chunks:
                    if isinstance(chunk, StopStringHit):
                        is_stopped = True
                        yield chunk
                        continue
                    at_marker = not chunk.is_forced and chunk.ids[-1:] == (episode.marker_id,)
                    turn.count(0 if chunk.is_forced else len(chunk.ids))
                    ends = at_marker and turn.budget <= 0
                    yield chunk._replace(finish_reason="length") if ends else chunk
            if is_stopped or not at_marker or turn.budget <= 0:
                return

    def _generate(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        stop_ids: Collection[int],
        stop: Sequence[str],
        endings: Mapping[int, str],
        thought: ThoughtLimit | None = None,
    ) -> AsyncGenerator[TokenChunk | StopStringHit, None]:
        if thought is None or thought.is_over:
            chunks = self.engine.generate(ids, sampling, stop_token_ids=frozenset(stop_ids))
        else:
            chunks = limit_thought(self.engine, ids, sampling, stop_ids, thought)
        return until_stop(chunks, stop, endings) if stop else chunks


def _cut_at_calls(chunk: TokenChunk, edges: Sequence[CallEdge]) -> Iterator[EpisodeEvent]:
    """Yield the events of a chunk in which calls begin or end. The last part of its text has the ids."""
    at = 0
    has_ids = False
    for edge in edges:
        if edge.at > at:
            has_ids = edge.at == len(chunk.text)
            part = chunk if has_ids else TokenChunk((), "", ())
            yield Sampled(part._replace(text=chunk.text[at : edge.at]))
            at = edge.at
        yield CallOpened() if edge.opens else CallClosed()
    if not has_ids:
        yield Sampled(chunk._replace(text=chunk.text[at:]))


@dataclass(slots=True)
class _Turn:
    """Numbers of one turn's calls of the engine."""

    engine_calls: Iterator[int]
    """Numbers the calls of the whole episode."""
    budget: int
    """Tokens that the turn may still sample."""
    sampled: int
    """Tokens that the episode has sampled."""

    def sampling(self, sampling: Sampling) -> Sampling:
        """Return the sampling of the next call."""
        return _for_turn(sampling, next(self.engine_calls), self.budget, self.sampled)

    def count(self, tokens: int) -> None:
        """Count sampled tokens."""
        self.budget -= tokens
        self.sampled += tokens


def _for_turn(sampling: Sampling, turn: int, budget: int, sampled: int) -> Sampling:
    """Return the sampling of one turn, after ``sampled`` tokens of the episode."""
    # The same seed in every turn would draw the same random numbers again.
    seed = None if sampling.seed is None else (sampling.seed * 1_000_003 + turn - 1) % 2**63
    min_tokens = min(max(sampling.min_tokens - sampled, 0), budget)
    return replace(sampling, max_tokens=budget, min_tokens=min_tokens, seed=seed)


def _executed(
    tool_id: str,
    blocks: list[InvokedBlock],
    flush: Flush,
    output: str,
    result: ExecutionResult,
    flushed_at: float,
) -> ExecutedTool:
    return ExecutedTool(
        id=tool_id,
        blocks=tuple(blocks),
        delayed=flush.delayed,
        output=output,
        status=result.status,
        started_at=result.started_at,
        finished_at=result.finished_at,
        flushed_at=flushed_at,
        wall_ms=result.wall_seconds * 1000,
        waited_ms=result.waited_seconds * 1000,
        runs=result.runs,
        pauses=result.pauses,
        container=result.container,
        requested_by=flush.requested_by,
        eager_fallback=result.eager_fallback,
        files=result.files,
    )
