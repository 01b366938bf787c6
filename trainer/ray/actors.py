"""What runs on the cluster's hosts. Both start as they are first needed, so Ray may start them anew."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from service.deferral.policy import DeferralPolicy
from service.engines.model_lookup import locate
from trainer.rewards import Reward, RewardScorer
from trainer.training.config import TrainConfig
from trainer.training.episodes import LocalRolloutWorker, Sample
from trainer.training.generation import make_own, rollout_settings
from trainer.training.setup import make_sandbox, start_all
from trainer.weight_sync.push import WeightSink


class EpisodeActor:
    """An engine, a sandbox and the episode loop. Its engine takes the weights that a call names.

    Args:
        config: the run.
        policy: the protocol, as resolved by the trainer.
    """

    def __init__(self, config: TrainConfig, policy: DeferralPolicy) -> None:
        self._config = config
        self._policy = policy
        self._lock = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._worker: LocalRolloutWorker | None = None
        self._sink: WeightSink | None = None
        self._index = -1

    async def start(self) -> int:
        """Load the model and start the sandbox, if that is not done.

        Returns:
            The process id.

        Raises:
            EngineError, SandboxError, ValueError: one does not start here.
        """
        async with self._lock:
            await self._started()
        return os.getpid()

    async def run_episode(
        self, prompt_ids: Sequence[int], seed: int, episode_id: str, index: int, weights: Sequence[Any]
    ) -> Sample:
        """Run one episode; see ``trainer.training.episodes.RolloutWorker``.

        Args:
            index: number of the rollout.
            weights: a reference to its weights in Ray's store; empty where servers elsewhere have them.

        Raises:
            EngineError: the engine failed.
        """
        async with self._lock:
            worker = await self._started()
            if self._sink is not None and weights and index != self._index:
                await self._sink.push(index, await weights[0])
                self._index = index
        return await worker.run_episode(prompt_ids, seed=seed, episode_id=episode_id)

    async def stop(self) -> None:
        """End the sandbox and the engine."""
        await self._stack.aclose()

    async def _started(self) -> LocalRolloutWorker:
        if self._worker is None:
            config = self._config
            model_dir = locate(config.model)
            sandbox = make_sandbox(config, self._policy)
            async with AsyncExitStack() as stack:
                device = config.device if config.ray and config.ray.gpus else "cpu"
                engine, self._sink = make_own(config, model_dir, self._policy, device)
                await start_all(stack, sandbox, engine)
                self._worker = LocalRolloutWorker(engine, sandbox, rollout_settings(config, self._policy))
                self._stack = stack.pop_all()
        return self._worker


class JudgeActor:
    """math-verify in ``workers`` processes."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._scorer: RewardScorer | None = None

    async def start(self) -> int:
        """The process id."""
        return os.getpid()

    async def score(self, response_text: str, gold: str) -> Reward:
        """As ``trainer.rewards.RewardScorer.score``. Raises RewardError."""
        if self._scorer is None:
            self._scorer = RewardScorer(workers=self._workers)
        return await self._scorer.score(response_text, gold)

    async def stop(self) -> None:
        """End the processes."""
        if self._scorer is not None:
            await self._scorer.close()
