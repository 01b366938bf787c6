"""One training rollout: draw problems, play them, judge the answers, keep the groups that teach something.

An event loop in a thread of its own: engine, sandbox and episodes live there for the whole run.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from torch import Tensor

from service.deferral.episode import Outcome as Ending
from service.deferral.prompt import with_instruction
from service.engines.base import EngineError, Tokenizer
from trainer.data.problems import Problem, ProblemStream
from trainer.rewards import Reward, RewardError
from trainer.training.batch import Row
from trainer.training.config import TrainConfig
from trainer.training.episodes import RolloutSettings, RolloutWorker, Sample, rollout, sample_seed
from trainer.training.filtering import FilterCounts, Outcome, filter_group
from trainer.training.records import Judged, write_rollout
from trainer.training.trainer import Means, RolloutBatch
from trainer.weight_sync.push import WeightSink

T = TypeVar("T")


class BackgroundLoop:
    """Runs coroutines for synchronous callers. A context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="episodes", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result, or its exception. An interrupt (Ctrl-C) cancels it and waits for its clean-up."""
        settled = threading.Event()
        future = asyncio.run_coroutine_threadsafe(_settle(work, settled), self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            settled.wait(timeout=30)
            raise


async def _settle(work: Coroutine[Any, Any, T], settled: threading.Event) -> T:
    try:
        return await work
    finally:
        settled.set()


class Scorer(Protocol):
    """Judges answers; see ``trainer.rewards.RewardScorer``."""

    async def score(self, response_text: str, gold: str) -> Reward: ...


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of the work this process does."""

    process: int = 0
    processes: int = 1


class Collector:
    """A `RowSource`. What a rollout draws depends on the run's seed and its number alone.

    Args:
        config: the run.
        settings: how episodes are played.
        problems: the training set, prompts short enough.
        tokenizer: the model's.
        worker: started in ``loop``.
        sink: where each rollout's weights go: to what ``worker`` samples with, in the end.
        scorer: used in ``loop``.
        share: of several processes, each plays its own problems.
        on_group: told of every group that is done: groups kept so far, groups wanted.
    """

    def __init__(
        self,
        config: TrainConfig,
        settings: RolloutSettings,
        problems: Sequence[Problem],
        tokenizer: Tokenizer,
        worker: RolloutWorker,
        sink: WeightSink,
        scorer: Scorer,
        loop: BackgroundLoop,
        *,
        share: Share = Share(),
        on_group: Callable[[int, int], None] = lambda kept, wanted: None,  # noqa: ARG005
    ) -> None:
        self._config = config
        self._stream = ProblemStream(problems, seed=config.seed)
        self._count = len(problems)
        self._settings = settings
        self._tokenizer = tokenizer
        self._worker = worker
        self._sink = sink
        self._scorer = scorer
        self._loop = loop
        self._share = share
        self._on_group = on_group

    @property
    def fingerprint(self) -> str:
        """Of the problems; a run that is resumed must have the same."""
        return self._stream.fingerprint

    def collect(self, index: int, weights: Mapping[str, Tensor]) -> RolloutBatch:
        """Rollout number ``index`` under ``weights``.

        Raises:
            EngineError, PushError: the engine failed, or did not take the weights, or every episode was lost.
        """
        return self._loop.run(self._collect(index, weights))

    def draw(self, index: int) -> list[tuple[int, Problem]]:
        """This process's problems for a rollout, each with its number among all that were ever drawn."""
        draws = self._config.draws_per_rollout
        epoch, position = divmod(index * draws, self._count)
        self._stream.restore({**self._stream.state(), "epoch": epoch, "position": position})
        drawn = list(enumerate(self._stream.take(draws), start=index * draws))
        return drawn[self._share.process :: self._share.processes]

    async def _collect(self, index: int, weights: Mapping[str, Tensor]) -> RolloutBatch:
        await self._sink.push(index, weights)
        began = time.monotonic()
        drawn = self.draw(index)
        wanted = self._config.prompts_per_step // self._share.processes
        groups = rollout(
            [self._render(problem) for _, problem in drawn],
            self._worker,
            self._settings,
            seeds=[
                [sample_seed(self._config.seed, number, place) for place in range(self._config.group_size)]
                for number, _ in drawn
            ],
        )
        judged: list[Judged] = []
        counts = FilterCounts()
        lost = 0
        async with aclosing(groups):
            # In the order of the draw, whichever is done first: what is kept must not hang on timing.
            for _, problem in drawn:
                samples = await anext(groups)
                lost += self._config.group_size - len(samples)
                group = await asyncio.gather(*(self._judge(problem, sample) for sample in samples))
                judged += self._filter(group, counts)
                self._on_group(counts.groups["kept"], wanted)
                if counts.groups["kept"] == wanted:
                    break
        if lost and not judged:
            raise EngineError(f"all {lost} episodes of rollout {index} were lost: see the warnings above")
        if self._config.save_rollouts:
            await asyncio.to_thread(write_rollout, self._path(index), index, judged)
        rows = [Row(item.sample, item.advantage) for item in judged if item.advantage is not None]
        return RolloutBatch(
            rows, _metrics(judged, lost, counts, time.monotonic() - began, self._share.processes)
        )

    def _render(self, problem: Problem) -> list[int]:
        turns = with_instruction(
            [{"role": "user", "content": problem.question}], self._settings.policy.prompt
        )
        return self._tokenizer.render_chat(turns, template_kwargs={"enable_thinking": False})

    async def _judge(self, problem: Problem, sample: Sample) -> Judged:
        if any(tool.status == "sandbox_error" for tool in sample.tools):
            return Judged(problem, sample, None, "sandbox_error")
        if sample.outcome.is_void:
            return Judged(problem, sample, 0.0, str(sample.outcome))
        try:
            reward = await self._scorer.score(sample.text, problem.answer)
        except RewardError as error:
            return Judged(problem, sample, None, str(error))
        return Judged(problem, sample, reward.value, reward.reason)

    def _filter(self, group: Sequence[Judged], counts: FilterCounts) -> list[Judged]:
        """The group, with an advantage where a sample is trained on. What was not judged stays out of it."""
        judged = [(i, item.reward, item.sample) for i, item in enumerate(group) if item.reward is not None]
        filtered = filter_group(
            [
                Outcome(
                    reward,
                    over_long=sample.outcome == Ending.LENGTH,
                    void=sample.outcome in (Ending.VOID, Ending.TURN_LIMIT),
                )
                for _, reward, sample in judged
            ],
            counts,
            min_valid=self._config.min_valid_samples,
            min_std=self._config.min_group_std,
        )
        result = list(group)
        for i, advantage, masked in zip(filtered.indices, filtered.advantages, filtered.masked, strict=True):
            if not masked:
                place = judged[i][0]
                result[place] = replace(result[place], advantage=advantage)
        return result

    def _path(self, index: int) -> Path:
        part = "" if self._share.processes == 1 else f"-{self._share.process}"
        return self._config.run_dir / "rollouts" / f"rollout-{index:06}{part}.parquet"


def _metrics(
    judged: Sequence[Judged], lost: int, counts: FilterCounts, seconds: float, processes: int
) -> Means:
    samples = [item.sample for item in judged]
    tools = [tool for sample in samples for tool in sample.tools]
    rewards = [item.reward for item in judged if item.reward is not None]
    sampled = sum(sum(sample.sampled) for sample in samples)
    tool_seconds = sum(sample.tool_seconds for sample in samples)
    means = Means()
    for name, (total, count) in counts.metrics().items():
        means.add(name, total, count)
    means.add("reward", sum(rewards), len(rewards))
    means.add("samples/not_judged", len(judged) - len(rewards), len(judged))
    for reason in ("bad_gold", "refused", "timeout"):
        means.add(f"samples/{reason}", sum(item.reason == reason for item in judged), len(judged))
    means.add("samples/lost", lost, len(judged) + lost)
    means.add("delay_rate", sum(s.delayed for s in samples), sum(s.executed_by_model for s in samples))
    means.add("flushes", len(tools), len(samples))
    means.add("tool_errors", sum(tool.status != "ok" for tool in tools), len(tools))
    means.add("tool_seconds", tool_seconds, len(tools))
    means.add("tool_hidden", sum(s.hidden_seconds for s in samples), tool_seconds)
    means.add("response_tokens", sampled, len(samples))
    means.add("tokens_per_second", sampled, seconds / processes)  # of all together
    means.add("rollout_seconds", seconds)
    return means
