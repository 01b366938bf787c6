"""The trainer's side of Ray: a rollout worker and a reward function that call actors."""

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
from trainer.ray.actor_pool import ActorPool, CallLostError
from trainer.ray.actors import RewardActor, RolloutActor
from trainer.rewards import Reward, RewardError
from trainer.training.config import RayConfig, TrainConfig
from trainer.training.episodes import EpisodeLostError, Sample


@contextmanager
def connected(config: RayConfig) -> Iterator[None]:
    """Connect to the cluster for the duration of the context.

    Raises:
        EngineError: no cluster is reachable at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports
    try:
        ray.init(address=config.address, include_dashboard=False if config.address == "local" else None)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EngineError(f"ray.address {config.address!r}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


class RayRolloutWorker:
    """A `RolloutWorker` on Ray actors, and the `WeightSink` of their engines.

    Args:
        config: the run, with section ``[ray]``.
        policy: resolved from checkpoint and recipe.
    """

    def __init__(self, config: TrainConfig, policy: DeferralPolicy) -> None:
        ray_config = cast("RayConfig", config.ray)
        if (path := Path(config.model).expanduser()).exists():  # else a hub id
            config = config.model_copy(update={"model": str(path.resolve())})
        actor = ray.remote(RolloutActor).options(
            num_cpus=ray_config.cpus,
            num_gpus=ray_config.gpus,
            resources=ray_config.resources,
            max_restarts=-1,
            max_concurrency=config.max_concurrent_episodes + 1,
            scheduling_strategy="SPREAD",
        )
        self._pool = ActorPool(
            "rollout",
            lambda: actor.remote(config, policy),
            ray_config.rollout_actors,
            attempts=ray_config.attempts,
            call_timeout_s=ray_config.episode_timeout_s,
            start_timeout_s=ray_config.start_timeout_s,
        )
        self._index = -1
        self._weights: list[Any] = []

    @property
    def pids(self) -> list[int]:
        """Process ids of the actors at their first start, each on its own host."""
        return self._pool.pids

    @property
    def busy(self) -> list[int]:
        """Indices of the actors that are running episodes."""
        return self._pool.busy

    async def start(self) -> None:
        """Start the actors.

        Raises:
            EngineError: an actor failed to start.
        """
        await self._pool.start()

    async def stop(self) -> None:
        self._weights = []
        await self._pool.stop()

    async def push(self, index: int, weights: Mapping[str, Tensor]) -> None:
        """Put the weights into Ray's object store. Each actor fetches them with its next episode."""
        self._index = index
        self._weights = []  # frees the weights of the last rollout first
        self._weights = [ray.put({name: weight.cpu() for name, weight in weights.items()})]

    async def run_episode(self, prompt_ids: Sequence[int], *, seed: int, episode_id: str) -> Sample:
        """Run an episode on one of the actors; see `RolloutWorker.run_episode`."""
        arguments = (tuple(prompt_ids), seed, episode_id, self._index, self._weights)
        try:
            sample: Sample = await self._pool.call("run_episode", *arguments)
        except CallLostError as error:
            raise EpisodeLostError(str(error)) from error
        return sample


class RayRewardScorer:
    """A `RewardFunction` on reward actors. An async context manager."""

    def __init__(self, config: RayConfig) -> None:
        actor = ray.remote(RewardActor).options(
            num_cpus=config.reward_workers,
            resources=config.reward_resources,
            max_restarts=-1,
            scheduling_strategy="SPREAD",
        )
        self._pool = ActorPool(
            "reward",
            lambda: actor.remote(config.reward_workers),
            config.reward_actors,
            attempts=config.attempts,
            call_timeout_s=config.episode_timeout_s,
            start_timeout_s=config.start_timeout_s,
        )

    async def score(self, response_text: str, gold: str) -> Reward:
        """Score an answer; see `RewardFunction.score`."""
        try:
            reward: Reward = await self._pool.call("score", response_text, gold)
        except CallLostError as error:
            raise RewardError(str(error)) from error
        return reward

    async def __aenter__(self) -> Self:
        await self._pool.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.stop()
