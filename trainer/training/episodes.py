"""Sample many episodes concurrently for training and evaluation.

Every episode runs in the server's own `EpisodeRunner`, so training sees exactly what is served.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from service.deferral.episode import Outcome
from service.deferral.policy import DeferralPolicy
from service.deferral.scanner import FenceScanner
from service.engines.base import Engine, Sampling
from service.episode.events import ExecutedTool, Finished, FlushFinished, Observed, Sampled
from service.episode.runner import EpisodeRunner
from service.sandbox.base import Sandbox
from service.tools.base import ToolHost
from trainer.rewards.protocol import FinishedEpisode


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """Settings of a rollout. ``max_concurrent`` counts episodes, including those waiting for code."""

    policy: DeferralPolicy
    sampling: Sampling
    """Its seed is ignored: each sample has its own."""
    group_size: int = 8
    eager: bool = True
    max_concurrent: int = 64


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled episode. ``ids``, ``sampled`` and ``logprobs`` have one item per response token.

    ``sampled`` is 1 for tokens of the model and 0 for observations. ``logprobs`` are the engine's at sampling
    time, and 0.0 for observations. Times are in seconds.
    """

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    sampled: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    outcome: Outcome
    answer: str | None
    tools: tuple[ExecutedTool, ...]
    seconds: float
    seed: int
    began_at: float | None = None
    """Unix time of the start, on the same clock as the times of ``tools``."""
    dropped_ends: tuple[tuple[int, int, float], ...] = ()
    """Sampled end-of-turn tokens that a flush of the server replaced: (position in ``ids``, token id,
    log-probability). They are not in ``ids`` and have no loss."""
    versions: tuple[int, ...] = ()
    """Version of the weights that sampled each token of ``ids``: the number of the rollout whose weights they
    are. 0 for observations."""
    pending_blocks: int = 0
    """Closed blocks that never ran."""
    open_fence: bool = False
    """Whether the last turn ends inside an unclosed Python block."""

    @property
    def is_valid(self) -> bool:
        """Whether it can be trained on: not void, not truncated, and without a sandbox failure."""
        return not self.outcome.is_void and not self.sandbox_failed

    @property
    def sandbox_failed(self) -> bool:
        """Whether the sandbox failed during a call."""
        return any(tool.status == "sandbox_error" for tool in self.tools)

    @property
    def mask(self) -> tuple[int, ...]:
        """1 for tokens with a loss, else 0; all 0 if the sample is not valid."""
        return self.sampled if self.is_valid else (0,) * len(self.ids)

    @property
    def tool_wait_seconds(self) -> float:
        """Time that the model waited for running code, without waiting for a container."""
        return sum(max(tool.waited_ms - tool.container_wait_ms, 0.0) for tool in self.tools) / 1000

    def finished(self, *, is_void: bool) -> FinishedEpisode:
        """Return the episode as reward functions see it."""
        return FinishedEpisode(
            text=self.text,
            outcome=self.outcome,
            is_void=is_void,
            tokens=sum(self.sampled),
            seconds=self.seconds,
            tools=self.tools,
            tool_wait_seconds=self.tool_wait_seconds,
            pending_blocks=self.pending_blocks,
            open_fence=self.open_fence,
        )

    @property
    def executed(self) -> int:
        """Number of blocks that ran."""
        return sum(len(tool.blocks) for tool in self.tools)

    @property
    def executed_by_model(self) -> int:
        """Number of blocks that ran in flushes requested by the model."""
        return sum(len(tool.blocks) for tool in self.tools if tool.requested_by == "model")

    @property
    def delayed(self) -> int:
        """Number of delayed calls. The delay rate is their share in ``executed_by_model``."""
        return sum(tool.delayed for tool in self.tools)

    @property
    def tool_seconds(self) -> float:
        """Run time of all code."""
        return sum(tool.wall_ms for tool in self.tools) / 1000

    @property
    def hidden_seconds(self) -> float:
        """The part of ``tool_seconds`` during which the model kept writing."""
        return sum(tool.hidden_ms for tool in self.tools) / 1000


def sample_seed(run_seed: int, *indices: int | str) -> int:
    """Return a seed in [0, 2^63) for one sample of a run. It depends on the arguments only."""
    text = ",".join(map(str, (run_seed, *indices)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


class EpisodeLostError(Exception):
    """The host that ran the episode was lost. The rollout continues without the episode."""


class RolloutWorker(Protocol):
    """Runs episodes, in this process or on another host."""

    async def run_episode(self, prompt_ids: Sequence[int], *, seed: int, episode_id: str) -> Sample:
        """Run one episode to its end. The same arguments and weights give the same tokens.

        Raises:
            EngineError: the engine failed.
            EpisodeLostError: the host that ran it was lost.
        """
        ...


class LocalRolloutWorker:
    """Runs episodes on an engine and a sandbox of this process, with tools; all of them started."""

    def __init__(
        self, engine: Engine, sandbox: Sandbox, settings: RolloutSettings, tools: ToolHost | None = None
    ) -> None:
        self._tools = tools
        self._runner = EpisodeRunner(engine, sandbox, settings.policy, settings.sampling)
        self._eager = settings.eager

    async def run_episode(self, prompt_ids: Sequence[int], *, seed: int, episode_id: str) -> Sample:
        """As `RolloutWorker.run_episode`; also raises ValueError if the tokenizer has no execute marker."""
        return await sample_episode(
            self._runner,
            prompt_ids,
            seed=seed,
            episode_id=episode_id,
            eager=self._eager,
            tools=self._tools,
        )


async def rollout(
    prompts: Sequence[Sequence[int]],
    worker: RolloutWorker,
    settings: RolloutSettings,
    *,
    seeds: Sequence[Sequence[int]],
    slots: asyncio.Semaphore | None = None,
) -> AsyncGenerator[tuple[Sample, ...], None]:
    """Sample ``group_size`` episodes per prompt concurrently, and yield the groups in the prompts' order.

    An episode that waits for code doesn't delay the others. Closing the generator cancels running episodes. A
    lost episode is missing from its group.

    Args:
        prompts: rendered prompts, as token ids.
        worker: runs the episodes; already started.
        settings: group size and concurrency.
        seeds: one per sample: ``len(prompts)`` rows of ``group_size`` seeds.
        slots: one for each episode in flight, shared with other rollouts. Default: ``max_concurrent`` of its
            own.

    Raises:
        ValueError: ``seeds`` has the wrong shape, or the tokenizer has no execute marker.
        EngineError: the engine failed.
    """
    if [len(row) for row in seeds] != [settings.group_size] * len(prompts):
        raise ValueError(f"seeds must be [{len(prompts)}][{settings.group_size}]")
    in_flight = asyncio.Semaphore(settings.max_concurrent) if slots is None else slots
    numbers = itertools.count()

    async def run(prompt: Sequence[int], seed: int, number: int) -> Sample | None:
        async with in_flight:
            try:
                return await worker.run_episode(prompt, seed=seed, episode_id=f"s{number}")
            except EpisodeLostError:
                return None

    groups = [
        [asyncio.create_task(run(prompt, seed, next(numbers))) for seed in row]
        for prompt, row in zip(prompts, seeds, strict=True)
    ]
    try:
        for group in groups:
            yield tuple(sample for sample in await asyncio.gather(*group) if sample is not None)
    finally:
        tasks = [task for group in groups for task in group]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def sample_episode(
    runner: EpisodeRunner,
    prompt_ids: Sequence[int],
    *,
    seed: int,
    episode_id: str,
    eager: bool = True,
    tools: ToolHost | None = None,
) -> Sample:
    """Run one episode to its end. Raises as `rollout`."""
    episode = runner.start(prompt_ids)
    sampling = replace(runner.sampling, seed=seed, max_tokens=episode.policy.max_episode_tokens)
    began, began_at = time.monotonic(), time.time()
    events = runner.run(episode, sampling, episode_id=episode_id, eager=eager, tools=tools)
    executed: list[ExecutedTool] = []
    turn: list[str] = []
    pending = 0
    async for event in events:
        match event:
            case Sampled(chunk):
                turn.append(chunk.text)
            case FlushFinished(tool):
                executed.append(tool)
            case Observed():
                turn.clear()
            case Finished(_, unflushed):
                pending = len(unflushed)
    scanner = FenceScanner(episode.policy.marker)
    scanner.feed("".join(turn) + "\n")
    transcript = episode.transcript
    return Sample(
        prompt_ids=transcript.prompt_ids,
        ids=tuple(transcript.ids),
        sampled=tuple(transcript.mask),
        logprobs=tuple(transcript.logprobs),
        text=transcript.text,
        outcome=episode.finish(),
        answer=episode.answer,
        tools=tuple(executed),
        seconds=time.monotonic() - began,
        seed=seed,
        began_at=began_at,
        dropped_ends=tuple(transcript.dropped_ends),
        versions=tuple(transcript.versions),
        pending_blocks=pending,
        open_fence=scanner.in_code,
    )
