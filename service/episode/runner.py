"""Run an episode: the one loop, behind every served request and every training rollout.

Hand blocks to a session in order, without making the model wait for a container.

Generation without deferral: the marker is a token like any other, and no code runs.

What a server serves: an engine, a sandbox, a checkpoint's policy. Every API starts its episodes here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from service.deferral.episode import Episode, Flush, Invocation, Outcome, leaves_thought_open
from service.deferral.policy import DeferralPolicy
from service.deferral.prompt import with_instruction
from service.engines.base import Engine, Sampling
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
from service.episode.stop_strings import StopStringHit, reply_endings, until_stop
from service.sandbox.base import ExecutionResult, Sandbox, SandboxError, Session, SessionLimits


class Invocations:
    """The pending blocks of one episode on their way to its session.

    A session may have to wait for a container at its first block. The blocks queue here, so that the engine
    writes on meanwhile; a sandbox that fails tells so at the flush.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._tail: asyncio.Task[None] | None = None
        self._is_first = True
        """No block has been added since the last flush."""
        self.container_wait_s = 0.0
        """How long the first block since the last flush waited for a container."""

    def prepare(self) -> None:
        """Announce in the background that blocks are likely; those that are added meanwhile come after it."""
        self._tail = asyncio.create_task(self._session.prepare())

    def add(self, code: str) -> None:
        """Invoke ``code`` after those before it; returns at once."""
        closed_at = time.monotonic() if self._is_first else None
        self._is_first = False
        self._tail = asyncio.create_task(self._invoke(self._tail, code, closed_at))

    async def _invoke(self, before: asyncio.Task[None] | None, code: str, closed_at: float | None) -> None:
        try:
            if before is not None:
                await before
            await self._session.invoke(code)  # returns as soon as a container has the block
        finally:
            if closed_at is not None:
                self.container_wait_s = time.monotonic() - closed_at

    async def flush(self) -> ExecutionResult:
        """The result of all that was added since the last flush; ``sandbox_error`` if the sandbox failed."""
        began = time.monotonic()
        tail, self._tail = self._tail, None
        self._is_first = True
        try:
            if tail is not None:
                await tail
            result = await self._session.flush()
        except SandboxError as error:
            waited = time.monotonic() - began
            return ExecutionResult("", str(error), "sandbox_error", wall_seconds=0.0, waited_seconds=waited)
        # The session's own count begins when it has its container; the model's does not.
        return replace(result, waited_seconds=max(result.waited_seconds, time.monotonic() - began))

    async def close(self) -> None:
        """Drop what is pending and close the session."""
        if self._tail is not None:
            self._tail.cancel()
            await asyncio.gather(self._tail, return_exceptions=True)
        await self._session.close()


async def run_plain(
    prompt_ids: Sequence[int], engine: Engine, sampling: Sampling, *, stops: Sequence[str] = ()
) -> AsyncGenerator[EpisodeEvent, None]:
    """One turn to its end, in the events of `run_episode`. Closing it cancels the engine.

    Raises:
        EngineError: the engine failed.
    """
    outcome = Outcome.VOID
    stream = engine.generate(prompt_ids, sampling, stop_token_ids=engine.eos_token_ids)
    async with aclosing(until_stop(stream, stops, reply_endings(engine))) as chunks:
        async for chunk in chunks:
            if isinstance(chunk, StopStringHit):
                yield chunk
                continue
            yield Sampled(chunk)
            if chunk.finish_reason == "length":
                outcome = Outcome.LENGTH
    yield Finished(outcome)


def new_episode(
    prompt_ids: Sequence[int], policy: DeferralPolicy, engine: Engine, *, code_is_answer: bool = False
) -> Episode:
    """Return a fresh episode under ``policy`` on ``engine``.

    Args:
        prompt_ids: the rendered prompt.
        policy: as the checkpoint was trained, or as a request asks for.
        engine: its context length bounds the episode.
        code_is_answer: the request asks for code; see `service.deferral.code_request`.

    Raises:
        ValueError: the tokenizer has no execute marker, so the checkpoint can't defer.
    """
    marker_id = engine.tokenizer.token_id(policy.marker)
    if marker_id is None:
        raise ValueError(f"the model's tokenizer has no token {policy.marker!r}, so it can't defer")
    # An episode must not outgrow the model: the engine would refuse its next turn.
    limit = min(policy.max_episode_tokens, engine.context_length)
    policy = policy.model_copy(update={"max_episode_tokens": limit})
    return Episode(
        prompt_ids,
        policy,
        engine.tokenizer,
        marker_id,
        endings=reply_endings(engine),
        code_is_answer=code_is_answer,
        in_thought=policy.unflushed == "run" and leaves_thought_open(_begun_reply(prompt_ids, engine)),
    )


def _begun_reply(prompt_ids: Sequence[int], engine: Engine) -> str:
    """The beginning of the reply, as the template or a client wrote it at the prompt's end."""
    return engine.tokenizer.decode(prompt_ids[-1024:]).rpartition("<|im_start|>")[2]


async def run_episode(
    episode: Episode,
    engine: Engine,
    session: Session,
    sampling: Sampling,
    *,
    episode_id: str,
    stops: Sequence[str] = (),
    clock: Callable[[], float] = time.time,
    prepare: bool = False,
) -> AsyncGenerator[EpisodeEvent, None]:
    """Drive ``episode`` to its outcome. Closing the generator cancels the engine and closes the session.

    Args:
        episode: a fresh episode.
        engine: samples the tokens.
        session: the episode's own namespace; closed at the end, whatever happens.
        sampling: ``max_tokens`` bounds what is sampled in the whole episode. A seed gives each turn its own.
        episode_id: prefix of the flushes' ids.
        stops: text of the model that ends the episode; what is pending then never runs.
        clock: Unix time.
        prepare: blocks are likely, so have a container ready for the first.

    Raises:
        EngineError: the engine failed. A sandbox that fails is not raised: the model reads of it.
    """
    stop_ids = engine.eos_token_ids | {episode.marker_id}
    endings = reply_endings(engine)
    invocations = Invocations(session)
    flushes = 0
    unflushed: tuple[InvokedBlock, ...] = ()
    left = sampling.max_tokens
    try:
        if prepare:
            invocations.prepare()
        while episode.outcome is None and (budget := min(episode.turn_budget(), left)) > 0:
            tool_id = f"{episode_id}_{flushes}"
            blocks: list[InvokedBlock] = []
            held: list[tuple[Invocation, InvokedBlock]] = []
            hit_length = stopped = False
            stream = engine.generate(
                episode.context_ids, _for_turn(sampling, episode.turn, budget), stop_token_ids=stop_ids
            )
            async with aclosing(until_stop(stream, stops, endings)) as chunks:
                async for chunk in chunks:
                    if isinstance(chunk, StopStringHit):
                        stopped = True
                        yield chunk
                        continue
                    yield Sampled(chunk)
                    left -= len(chunk.ids)
                    for invocation in episode.feed(chunk.ids, chunk.text, chunk.logprobs):
                        block = InvokedBlock(invocation.code, invocation.at_token, clock())
                        # A block that may never run does not run ahead, nor do the blocks after it.
                        if held or invocation.waits:
                            held.append((invocation, block))
                            continue
                        invocations.add(block.code)
                        blocks.append(block)
                        yield Invoked(tool_id, len(blocks) - 1, block)
                    hit_length = chunk.finish_reason == "length"
                    if episode.turn_over:
                        break
            flush = episode.end_turn(hit_length=hit_length, stopped=stopped)
            if flush is None:
                unflushed = (*blocks, *(block for invocation, block in held if not invocation.waits))
                break
            for invocation, block in held:
                if flush.requested_by == "model" or not invocation.by_model_only:
                    invocations.add(block.code)
                    blocks.append(block)
                    yield Invoked(tool_id, len(blocks) - 1, block)
            result: ExecutionResult | None = None
            if flush.blocks:
                yield FlushStarted(tool_id, tuple(blocks), flush.requested_by)
                flushed_at = clock()
                result = await invocations.flush()
                flushes += 1
            observation = episode.observe(result, requested_by=flush.requested_by)
            if result is not None:
                tool = _executed(tool_id, blocks, flush, observation.output, result, flushed_at)
                tool = replace(tool, container_wait_ms=invocations.container_wait_s * 1000)
                yield FlushFinished(tool)
            if observation.ids:
                yield Observed(observation.ids, observation.text)
        yield Finished(episode.finish(), unflushed)
    finally:
        await invocations.close()


def _for_turn(sampling: Sampling, turn: int, budget: int) -> Sampling:
    # The same seed in every turn would draw the same random numbers again.
    seed = None if sampling.seed is None else (sampling.seed * 1_000_003 + turn - 1) % 2**63
    return replace(sampling, max_tokens=budget, seed=seed)


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
        container=result.container,
        requested_by=flush.requested_by,
    )


Messages = Sequence[dict[str, object]]


@dataclass(frozen=True, slots=True)
class Backend:
    """Engine, sandbox and policy, and how they become an episode."""

    engine: Engine
    sandbox: Sandbox
    policy: DeferralPolicy
    sampling: Sampling
    """What a request that says nothing is sampled with."""

    def render(
        self,
        messages: Messages,
        *,
        deferral: bool,
        thinking: bool = False,
        continue_final: bool = False,
        tools: Sequence[dict[str, object]] = (),
    ) -> list[int]:
        """Return the prompt ids of ``messages``; with ``deferral`` the instruction is added, once.

        Args:
            messages: turns as the chat template takes them.
            deferral: code that the model writes will run.
            thinking: let the model think first.
            continue_final: leave the last message open, for the model to continue it.
            tools: functions of the client, in OpenAI's form, that the model may call.

        Raises:
            ValueError: there is no user turn to carry the instruction.
            EngineError: the template refused.
        """
        turns = with_instruction(messages, self.policy.prompt) if deferral else list(messages)
        options: dict[str, object] = {"enable_thinking": thinking}
        if tools:
            options["tools"] = list(tools)
        return self.engine.tokenizer.render_chat(
            turns, template_kwargs=options, continue_final=continue_final
        )

    def room(self, prompt_ids: Sequence[int], *, deferral: bool) -> int:
        """Tokens that may follow the prompt."""
        limit = min(self.engine.context_length, self.policy.max_episode_tokens if deferral else 2**62)
        return limit - len(prompt_ids)

    def plain(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, stops: Sequence[str] = ()
    ) -> AsyncGenerator[EpisodeEvent, None]:
        """Generation without deferral."""
        return run_plain(prompt_ids, self.engine, sampling, stops=stops)

    def episode(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        policy: DeferralPolicy,
        *,
        eager: bool,
        episode_id: str,
        stops: Sequence[str] = (),
        code_is_answer: bool = False,
    ) -> AsyncGenerator[EpisodeEvent, None]:
        """A deferred episode under ``policy``; for ``code_is_answer`` see `new_episode`.

        Raises:
            ValueError: the tokenizer has no execute marker, so the checkpoint can't defer.
        """
        episode = new_episode(prompt_ids, policy, self.engine, code_is_answer=code_is_answer)
        session = self.sandbox.session(SessionLimits(run_limit_s=policy.run_limit_s, eager=eager))
        return run_episode(
            episode, self.engine, session, sampling, episode_id=episode_id, stops=stops, prepare=True
        )
