"""Ray actors for rollouts and rewards. They start lazily, so Ray can restart them at any time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from service.deferral.policy import DeferralPolicy
from service.engines.model_lookup import locate
from trainer.environments.tools import make_tools
from trainer.rewards import Reward, RewardScorer
from trainer.training.config import TrainConfig
from trainer.training.episodes import LocalRolloutWorker, Sample
from trainer.training.generation import make_engine_and_sink, rollout_settings
from trainer.training.setup import make_sandbox, start_all
from trainer.weight_sync.sinks import WeightSink


class RolloutActor:
    """Actor with an engine and a sandbox that runs episodes. Its engine loads the weights given in a call.

    Args:
        config: the run.
        policy: resolved from checkpoint and recipe by the trainer.
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
        """Load the model and start the sandbox, unless already done.

        Returns:
            The process id.

        Raises:
            EngineError, SandboxError, ValueError: the engine or the sandbox failed to start.
        """
        async with self._lock:
            await self._started()
        return os.getpid()

    async def run_episode(
        self, prompt_ids: Sequence[int], seed: int, episode_id: str, index: int, weights: Sequence[Any]
    ) -> Sample:
        """Run one episode; see ``trainer.training.episodes.RolloutWorker``.

        Args:
            prompt_ids: the rendered prompt.
            seed: seed of the episode.
            episode_id: name of the episode in logs.
            index: number of the rollout.
            weights: a reference to its weights in Ray's object store; empty if remote servers sample.

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
        """Stop the sandbox and the engine."""
        await self._stack.aclose()

    async def _started(self) -> LocalRolloutWorker:
        if self._worker is None:
            config = self._config
            model_dir = locate(config.model, base=config.base)
            sandbox = make_sandbox(config, self._policy)
            async with AsyncExitStack() as stack:
                device = config.device if config.ray and config.ray.gpus else "cpu"
                engine, self._sink = make_engine_and_sink(config, model_dir, self._policy, device)
                tools = make_tools(config.tools)
                await start_all(stack, sandbox, engine, *([] if tools is None else [tools]))
                settings = rollout_settings(config, self._policy)
                self._worker = LocalRolloutWorker(engine, sandbox, settings, tools)
                self._stack = stack.pop_all()
        return self._worker


class RewardActor:
    """Actor that scores answers in ``workers`` processes."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._scorer: RewardScorer | None = None

    async def start(self) -> int:
        """Return the process id."""
        return os.getpid()

    async def score(self, response_text: str, gold: str) -> Reward:
        """Score an answer; see ``trainer.rewards.RewardScorer.score``."""
        if self._scorer is None:
            self._scorer = RewardScorer(workers=self._workers)
        return await self._scorer.score(response_text, gold)

    async def stop(self) -> None:
        """Stop the processes."""
        if self._scorer is not None:
            await self._scorer.close()
