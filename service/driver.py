"""Run an episode: the one loop, behind every served request and every training rollout."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from service.deferral.episode import Episode, Flush, Invocation, leaves_thought_open
from service.deferral.policy import DeferralPolicy
from service.engines.base import Engine, Sampling
from service.events import (
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
from service.invocations import Invocations
from service.sandbox.base import ExecutionResult, Session
from service.stops import Stopped, reply_endings, until_stop


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
                    if isinstance(chunk, Stopped):
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
