"""Play many episodes at once. The loop is the server's own, so what is trained is what is served."""

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
from service.engines.base import Engine, Sampling
from service.episode.events import ExecutedTool, FlushFinished
from service.episode.runner import new_episode, run_episode
from service.sandbox.base import Sandbox, SessionLimits


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """How episodes are played. ``max_concurrent`` counts episodes, those that wait for their code
    included."""

    policy: DeferralPolicy
    sampling: Sampling
    """Its seed is not used: each sample has its own."""
    group_size: int = 8
    eager: bool = True
    max_concurrent: int = 64


@dataclass(frozen=True, slots=True)
class Sample:
    """One episode. ``ids``, ``sampled`` and ``logprobs`` are aligned, one item a response token.

    ``sampled`` is 1 where the model wrote the token and 0 on observations; ``logprobs`` are the engine's,
    as it drew the tokens, and 0.0 on observations. Times are seconds.
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
    """Unix time at which the episode began, on the clock of its tools' times."""
    dropped_ends: tuple[tuple[int, int, float], ...] = ()
    """End-of-turn tokens that were sampled and replaced by a flush of the server's: (position in ``ids``,
    token id, log-probability). They are not in ``ids`` and take no part in the loss."""

    @property
    def is_valid(self) -> bool:
        """Whether it may be trained on: not void, not cut, and no sandbox failed under it."""
        return not self.outcome.is_void and all(tool.status != "sandbox_error" for tool in self.tools)

    @property
    def mask(self) -> tuple[int, ...]:
        """1 on the tokens that the loss counts; all 0 where the sample is not valid."""
        return self.sampled if self.is_valid else (0,) * len(self.ids)

    @property
    def executed(self) -> int:
        """Blocks that ran."""
        return sum(len(tool.blocks) for tool in self.tools)

    @property
    def executed_by_model(self) -> int:
        """Those of them whose flush the model requested."""
        return sum(len(tool.blocks) for tool in self.tools if tool.requested_by == "model")

    @property
    def delayed(self) -> int:
        """Delayed calls; the delay rate is their share in ``executed_by_model``."""
        return sum(tool.delayed for tool in self.tools)

    @property
    def tool_seconds(self) -> float:
        """Time that code ran."""
        return sum(tool.wall_ms for tool in self.tools) / 1000

    @property
    def hidden_seconds(self) -> float:
        """The part of ``tool_seconds`` that passed while the model wrote on."""
        return sum(tool.hidden_ms for tool in self.tools) / 1000


def sample_seed(run_seed: int, *indices: int | str) -> int:
    """A seed in [0, 2^63) for one sample of a run; the same arguments always give the same one."""
    text = ",".join(map(str, (run_seed, *indices)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


class EpisodeLostError(Exception):
    """Where it was played is gone. It says nothing of the model, and the rollout goes on without it."""


class Player(Protocol):
    """Plays episodes, here or elsewhere."""

    async def play(self, prompt_ids: Sequence[int], *, seed: int, episode_id: str) -> Sample:
        """One episode to its end; the same arguments and weights give the same tokens.

        Raises:
            EngineError: the engine failed.
            EpisodeLostError: the host that played it was lost.
        """
        ...


class LocalPlayer:
    """Plays on an engine and a sandbox of this process, both started."""

    def __init__(self, engine: Engine, sandbox: Sandbox, settings: RolloutSettings) -> None:
        self._engine, self._sandbox, self._settings = engine, sandbox, settings

    async def play(self, prompt_ids: Sequence[int], *, seed: int, episode_id: str) -> Sample:
        """Raises ValueError where the tokenizer has no execute marker; else as ``Player.play``."""
        return await play_episode(
            prompt_ids, self._engine, self._sandbox, self._settings, seed=seed, episode_id=episode_id
        )


async def rollout(
    prompts: Sequence[Sequence[int]],
    player: Player,
    settings: RolloutSettings,
    *,
    seeds: Sequence[Sequence[int]],
) -> AsyncGenerator[tuple[Sample, ...], None]:
    """Play ``group_size`` episodes a prompt, all at once, and yield the groups in the prompts' order.

    An episode that waits for its code holds up nothing but itself. Closing the generator cancels the
    episodes that still run, so a caller that has enough pays for no more. An episode that was lost is left
    out of its group.

    Args:
        prompts: rendered prompts, as token ids.
        player: started.
        seeds: one a sample, ``len(prompts)`` rows of ``group_size`` each.

    Raises:
        ValueError: the seeds' shape does not fit, or the tokenizer has no execute marker.
        EngineError: the engine failed.
    """
    if [len(row) for row in seeds] != [settings.group_size] * len(prompts):
        raise ValueError(f"seeds must be [{len(prompts)}][{settings.group_size}]")
    slots = asyncio.Semaphore(settings.max_concurrent)
    numbers = itertools.count()

    async def play(prompt: Sequence[int], seed: int, number: int) -> Sample | None:
        async with slots:
            try:
                return await player.play(prompt, seed=seed, episode_id=f"s{number}")
            except EpisodeLostError:
                return None

    groups = [
        [asyncio.create_task(play(prompt, seed, next(numbers))) for seed in row]
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


async def play_episode(
    prompt_ids: Sequence[int],
    engine: Engine,
    sandbox: Sandbox,
    settings: RolloutSettings,
    *,
    seed: int,
    episode_id: str,
) -> Sample:
    """Play one episode to its end. Raises as ``rollout`` does."""
    episode = new_episode(prompt_ids, settings.policy, engine)
    policy = episode.policy
    session = sandbox.session(SessionLimits(run_limit_s=policy.run_limit_s, eager=settings.eager))
    sampling = replace(settings.sampling, seed=seed, max_tokens=policy.max_episode_tokens)
    began, began_at = time.monotonic(), time.time()
    events = run_episode(episode, engine, session, sampling, episode_id=episode_id)
    tools = [event.tool async for event in events if isinstance(event, FlushFinished)]
    transcript = episode.transcript
    return Sample(
        prompt_ids=transcript.prompt_ids,
        ids=tuple(transcript.ids),
        sampled=tuple(transcript.mask),
        logprobs=tuple(transcript.logprobs),
        text=transcript.text,
        outcome=episode.finish(),
        answer=episode.answer,
        tools=tuple(tools),
        seconds=time.monotonic() - began,
        seed=seed,
        began_at=began_at,
        dropped_ends=tuple(transcript.dropped_ends),
    )
