"""The trainer's side: episodes and verdicts from actors, as if they were made here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import ray
from torch import Tensor

from service.deferral.policy import DeferralPolicy
from service.engines.base import EngineError
from trainer.ray.actors import EpisodeActor, JudgeActor
from trainer.ray.replicas import CallLostError, Replicas
from trainer.rewards import Reward, RewardError
from trainer.training.config import RayConfig, TrainConfig
from trainer.training.episodes import EpisodeLostError, Sample


@contextmanager
def connected(config: RayConfig) -> Iterator[None]:
    """Be part of the cluster.

    Raises:
        EngineError: there is none at that address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of a run
    try:
        ray.init(address=config.address, include_dashboard=False if config.address == "local" else None)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EngineError(f"ray.address {config.address!r}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


class RayRolloutWorker:
    """A `RolloutWorker` and, for the engines of its actors, a `WeightSink`.

    Args:
        config: the run, with its section ``[ray]``.
        policy: the protocol, as resolved from checkpoint and recipe.
    """

    def __init__(self, config: TrainConfig, policy: DeferralPolicy) -> None:
        ours = cast("RayConfig", config.ray)
        if (path := Path(config.model).expanduser()).exists():  # else a hub id, which each host has or loads
            config = config.model_copy(update={"model": str(path.resolve())})
        actor = ray.remote(EpisodeActor).options(
            num_cpus=ours.cpus,
            num_gpus=ours.gpus,
            resources=ours.resources,
            max_restarts=-1,
            max_concurrency=config.max_concurrent_episodes + 1,
            scheduling_strategy="SPREAD",
        )
        self._replicas = Replicas(
            "rollout",
            lambda: actor.remote(config, policy),
            ours.rollout_actors,
            attempts=ours.attempts,
            call_timeout_s=ours.episode_timeout_s,
            start_timeout_s=ours.start_timeout_s,
        )
        self._index = -1
        self._weights: list[Any] = []

    @property
    def pids(self) -> list[int]:
        """Of the actors' processes, as they were started first, each on its host."""
        return self._replicas.pids

    @property
    def under_way(self) -> list[int]:
        """Numbers of the actors that play."""
        return self._replicas.under_way

    async def start(self) -> None:
        """Raises EngineError: an actor does not start."""
        await self._replicas.start()

    async def stop(self) -> None:
        self._weights = []
        await self._replicas.stop()

    async def push(self, index: int, weights: Mapping[str, Tensor]) -> None:
        """Put them into Ray's store, once; an actor fetches them with its first episode of the rollout."""
        self._index = index
        self._weights = []  # the last rollout's may go before the next come
        self._weights = [ray.put({name: weight.cpu() for name, weight in weights.items()})]

    async def run_episode(self, prompt_ids: Sequence[int], *, seed: int, episode_id: str) -> Sample:
        """Raises EpisodeLostError: every actor that it was tried on was lost."""
        arguments = (tuple(prompt_ids), seed, episode_id, self._index, self._weights)
        try:
            sample: Sample = await self._replicas.call("run_episode", *arguments)
        except CallLostError as error:
            raise EpisodeLostError(str(error)) from error
        return sample


class RayScorer:
    """As ``trainer.rewards.RewardScorer``, on reward actors. An async context manager."""

    def __init__(self, config: RayConfig) -> None:
        actor = ray.remote(JudgeActor).options(
            num_cpus=config.reward_workers,
            resources=config.reward_resources,
            max_restarts=-1,
            scheduling_strategy="SPREAD",
        )
        self._replicas = Replicas(
            "reward",
            lambda: actor.remote(config.reward_workers),
            config.reward_actors,
            attempts=config.attempts,
            call_timeout_s=config.episode_timeout_s,
            start_timeout_s=config.start_timeout_s,
        )

    async def score(self, response_text: str, gold: str) -> Reward:
        """Raises RewardError: no worker could judge it."""
        try:
            reward: Reward = await self._replicas.call("score", response_text, gold)
        except CallLostError as error:
            raise RewardError(str(error)) from error
        return reward

    async def __aenter__(self) -> Self:
        await self._replicas.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._replicas.stop()
