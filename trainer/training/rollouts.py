"""Collection of training rollouts: draw problems, run episodes, score answers, keep useful groups."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from service.deferral.episode import Outcome
from service.deferral.prompt import with_instruction
from service.engines.base import EngineError, Tokenizer
from trainer.data.problems import Problem, ProblemStream
from trainer.rewards.registry import RewardConfigError, RewardSet
from trainer.training.config import TrainConfig
from trainer.training.episodes import RolloutSettings, RolloutWorker, Sample, rollout, sample_seed
from trainer.training.filtering import FilterCounts, GroupSample, filter_group, overlong_penalty
from trainer.training.run_files import ScoredSample, write_rollout
from trainer.weight_sync.sinks import WeightSink

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """A sample to train on, with its advantage."""

    sample: Sample
    advantage: float
    train_void: bool = False
    """Train on the sample even if it is void or was cut."""

    @property
    def mask(self) -> tuple[int, ...]:
        """1 for tokens with a loss, else 0."""
        return self.sample.sampled if self.train_void else self.sample.mask

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return len(self.sample.prompt_ids) + len(self.sample.ids)


class Means:
    """Running means by name, kept as (sum, count) pairs. Not thread-safe.

    Adding up the pairs of several processes gives the exact mean over all of them.
    """

    def __init__(self) -> None:
        self._pairs: defaultdict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))

    def add(self, name: str, total: float, count: float = 1.0) -> None:
        """Add ``count`` items that sum to ``total``."""
        old_total, old_count = self._pairs[name]
        self._pairs[name] = (old_total + float(total), old_count + float(count))

    def reduced(self, accelerator: Accelerator) -> Mapping[str, float]:
        """Return the means over all processes. Omits names with count 0."""
        names = sorted(self._pairs)
        if accelerator.num_processes > 1:  # reasons of rewards may occur on one process only
            names = sorted({name for found in gather_object([names]) for name in found})
        pairs = torch.tensor([self._pairs[name] for name in names], dtype=torch.float64, device="cpu")
        if accelerator.num_processes > 1:
            pairs = accelerator.reduce(pairs.to(accelerator.device, torch.float32)).cpu()
        return {
            name: total / count
            for name, (total, count) in zip(names, pairs.reshape(-1, 2).tolist(), strict=True)
            if count
        }


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """The result of one rollout on this process."""

    rows: Sequence[Row]
    """At most ``prompts_per_step x group_size / processes``."""
    metrics: Means


class RolloutSource(Protocol):
    """A source of training rows, called by the trainer once per rollout."""

    @property
    def fingerprint(self) -> str:
        """Hash of the problems. A resumed run must have the same."""
        ...

    def collect(self, index: int, weights: Mapping[str, Tensor]) -> RolloutBatch:
        """Collect rollout number ``index`` under ``weights``. The same arguments give the same rows."""
        ...


class BackgroundLoop:
    """An event loop in its own thread, for synchronous callers. A context manager.

    The engine, the sandbox and all episodes run in it for the whole training run.
    """

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
        """Return the coroutine's result or raise its exception.

        An interrupt (Ctrl-C) cancels the coroutine and waits for its clean-up.
        """
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


@dataclass(frozen=True, slots=True)
class Shard:
    """This process's share of the work."""

    process: int = 0
    processes: int = 1


class RolloutCollector:
    """The `RolloutSource` of a training run. Draws depend only on the run's seed and the rollout's number.

    Args:
        config: the run.
        settings: how episodes are run.
        problems: the training set, filtered by prompt length.
        tokenizer: the model's.
        worker: started in ``loop``.
        sink: receives the weights of each rollout and passes them to the engine that ``worker`` samples with.
        rewards: entered and called in ``loop``.
        loop: running.
        shard: the problems that this process draws, out of several processes.
        on_group: called after each finished group with the number of groups kept so far and wanted.
    """

    def __init__(
        self,
        config: TrainConfig,
        settings: RolloutSettings,
        problems: Sequence[Problem],
        tokenizer: Tokenizer,
        worker: RolloutWorker,
        sink: WeightSink,
        rewards: RewardSet,
        loop: BackgroundLoop,
        *,
        shard: Shard = Shard(),
        on_group: Callable[[int, int], None] = lambda kept, wanted: None,  # noqa: ARG005
    ) -> None:
        self._config = config
        self._stream = ProblemStream(problems, seed=config.seed)
        self._count = len(problems)
        self._settings = settings
        self._tokenizer = tokenizer
        self._worker = worker
        self._sink = sink
        self._rewards = rewards
        self._loop = loop
        self._shard = shard
        self._on_group = on_group

    @property
    def fingerprint(self) -> str:
        """Hash of the problems. A resumed run must have the same."""
        return self._stream.fingerprint

    def collect(self, index: int, weights: Mapping[str, Tensor]) -> RolloutBatch:
        """Collect rollout number ``index`` under ``weights``.

        Raises:
            EngineError: the engine failed, or every episode was lost.
            WeightSyncError: a server did not accept the weights.
            RewardConfigError: a reward raised an exception for every episode.
        """
        return self._loop.run(self._collect(index, weights))

    def draw(self, index: int) -> list[tuple[int, Problem]]:
        """Return this process's problems for a rollout, each with its number among all draws of the run."""
        draws = self._config.draws_per_rollout
        epoch, position = divmod(index * draws, self._count)
        self._stream.restore({**self._stream.state(), "epoch": epoch, "position": position})
        drawn = list(enumerate(self._stream.take(draws), start=index * draws))
        return drawn[self._shard.process :: self._shard.processes]

    async def _collect(self, index: int, weights: Mapping[str, Tensor]) -> RolloutBatch:
        await self._sink.push(index, weights)
        began = time.monotonic()
        drawn = self.draw(index)
        wanted = self._config.prompts_per_step // self._shard.processes
        groups = rollout(
            [self._render(problem) for _, problem in drawn],
            self._worker,
            self._settings,
            seeds=[
                [sample_seed(self._config.seed, number, place) for place in range(self._config.group_size)]
                for number, _ in drawn
            ],
        )
        scored: list[ScoredSample] = []
        counts = FilterCounts()
        lost = 0
        async with aclosing(groups):
            # In the order of the draw, not of completion: the selection must not depend on timing.
            for _, problem in drawn:
                samples = await anext(groups)
                lost += self._config.group_size - len(samples)
                group = await asyncio.gather(*(self._score(problem, sample) for sample in samples))
                scored += self._filter(group, counts)
                self._on_group(counts.groups["kept"], wanted)
                if counts.groups["kept"] == wanted:
                    break
        if lost and not scored:
            raise EngineError(f"all {lost} episodes of rollout {index} were lost: see the warnings above")
        self._check_rewards(index, scored)
        if self._config.save_rollouts:
            await asyncio.to_thread(write_rollout, self._path(index), index, scored)
        train_void = not self._config.mask_void
        rows = [Row(item.sample, item.advantage, train_void) for item in scored if item.advantage is not None]
        return RolloutBatch(
            rows, _metrics(scored, lost, counts, time.monotonic() - began, self._shard.processes)
        )

    def _render(self, problem: Problem) -> list[int]:
        turns = with_instruction(problem.messages, self._settings.policy.prompt)
        options: dict[str, object] = {"enable_thinking": self._config.thinking}
        return self._tokenizer.render_chat(turns, template_kwargs=options)

    async def _score(self, problem: Problem, sample: Sample) -> ScoredSample:
        if any(tool.status == "sandbox_error" for tool in sample.tools):
            return ScoredSample(problem, sample, None, "sandbox_error")
        verdict = await self._rewards.score(sample.finished(is_void=sample.outcome.is_void), problem.row)
        return ScoredSample(problem, sample, verdict.value, verdict.reason, parts=verdict.parts)

    def _check_rewards(self, index: int, scored: Sequence[ScoredSample]) -> None:
        for name in self._rewards.names:
            parts = [item.parts[name] for item in scored if name in item.parts]
            if parts and all(part.reason == "exception" for part in parts):
                raise RewardConfigError(
                    f"{parts[0].error}, for all {len(parts)} episodes of rollout {index}: fix the reward and "
                    f"rerun to resume"
                )

    def _filter(self, group: Sequence[ScoredSample], counts: FilterCounts) -> list[ScoredSample]:
        """Return the group with advantages set on the samples to train on. Ignores samples without reward."""
        rewarded = [(i, item.reward, item.sample) for i, item in enumerate(group) if item.reward is not None]
        buffer = self._config.overlong_buffer
        filtered = filter_group(
            [
                GroupSample(
                    reward + self._overlong_penalty(sample),
                    over_long=sample.outcome == Outcome.LENGTH and not buffer,
                    void=sample.outcome in (Outcome.VOID, Outcome.TURN_LIMIT),
                )
                for _, reward, sample in rewarded
            ],
            counts,
            min_valid=self._config.min_valid_samples,
            min_std=self._config.min_group_std,
            mask_void=self._config.mask_void,
            scale=self._config.scale_advantages,
        )
        result = list(group)
        for i, advantage, masked in zip(filtered.indices, filtered.advantages, filtered.masked, strict=True):
            if not masked:
                place = rewarded[i][0]
                result[place] = replace(result[place], advantage=advantage)
        return result

    def _overlong_penalty(self, sample: Sample) -> float:
        buffer = self._config.overlong_buffer
        if buffer and sample.outcome == Outcome.LENGTH:
            return -1.0
        limit = self._settings.policy.max_episode_tokens - len(sample.prompt_ids)
        return overlong_penalty(len(sample.ids), max(limit, 1), buffer)

    def _path(self, index: int) -> Path:
        part = "" if self._shard.processes == 1 else f"-{self._shard.process}"
        return self._config.run_dir / "rollouts" / f"rollout-{index:06}{part}.parquet"


def _metrics(
    scored: Sequence[ScoredSample], lost: int, counts: FilterCounts, seconds: float, processes: int
) -> Means:
    samples = [item.sample for item in scored]
    tools = [tool for sample in samples for tool in sample.tools]
    rewards = [item.reward for item in scored if item.reward is not None]
    sampled = sum(sum(sample.sampled) for sample in samples)
    tool_seconds = sum(sample.tool_seconds for sample in samples)
    means = Means()
    for name, (total, count) in counts.metrics().items():
        means.add(name, total, count)
    means.add("reward", sum(rewards), len(rewards))
    means.add("samples/not_judged", len(scored) - len(rewards), len(scored))
    for reason in ("bad_gold", "refused", "timeout"):
        means.add(f"samples/{reason}", sum(item.reason == reason for item in scored), len(scored))
    for name in next((item.parts for item in scored if item.parts), {}):
        parts = [item.parts[name] for item in scored if item.parts]
        values = [part.value for part in parts if part.value is not None]
        means.add(f"rewards/{name}", sum(values), len(values))
        for reason, count in Counter(part.reason for part in parts).items():
            means.add(f"rewards/{name}/{reason}", count, len(parts))
    means.add("samples/lost", lost, len(scored) + lost)
    means.add("delay_rate", sum(s.delayed for s in samples), sum(s.executed_by_model for s in samples))
    means.add("flushes", len(tools), len(samples))
    means.add("tool_errors", sum(tool.status != "ok" for tool in tools), len(tools))
    means.add("tool_seconds", tool_seconds, len(tools))
    means.add("tool_hidden", sum(s.hidden_seconds for s in samples), tool_seconds)
    means.add("response_tokens", sampled, len(samples))
    means.add("tokens_per_second", sampled, seconds / processes)  # sum over all processes
    means.add("rollout_seconds", seconds)
    return means
