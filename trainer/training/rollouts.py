"""Collection of training rollouts: draw problems, run episodes, score answers, keep useful groups."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from random import Random
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
from trainer.training.rollout_queue import EpisodeLog, QueueState, RolloutQueue, StartCounter, Taken
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
    """Running means by name, kept as (sum, count) pairs, and maxima. Not thread-safe.

    Adding up the pairs of several processes gives the exact mean over all of them.
    """

    def __init__(self) -> None:
        self._pairs: defaultdict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        self._maxima: dict[str, float] = {}

    def add(self, name: str, total: float, count: float = 1.0) -> None:
        """Add ``count`` items that sum to ``total``."""
        old_total, old_count = self._pairs[name]
        self._pairs[name] = (old_total + float(total), old_count + float(count))

    def set_count(self, name: str, count: float) -> None:
        """Replace the number of items of ``name``."""
        self._pairs[name] = (self._pairs[name][0], float(count))

    def add_maximum(self, name: str, value: float) -> None:
        """Add a value of which the maximum is reported. All processes must add the same names."""
        self._maxima[name] = max(value, self._maxima.get(name, value))

    def reduced(self, accelerator: Accelerator) -> Mapping[str, float]:
        """Return the means over all processes. Omits names with count 0."""
        names = sorted(self._pairs)
        if accelerator.num_processes > 1:  # reasons of rewards may occur on one process only
            names = sorted({name for found in gather_object([names]) for name in found})
        pairs = torch.tensor([self._pairs[name] for name in names], dtype=torch.float64, device="cpu")
        if accelerator.num_processes > 1:
            pairs = accelerator.reduce(pairs.to(accelerator.device, torch.float32)).cpu()
        means = {
            name: total / count
            for name, (total, count) in zip(names, pairs.reshape(-1, 2).tolist(), strict=True)
            if count
        }
        return {**means, **self._reduced_maxima(accelerator)}

    def _reduced_maxima(self, accelerator: Accelerator) -> Mapping[str, float]:
        if not self._maxima or accelerator.num_processes == 1:
            return self._maxima
        names = sorted(self._maxima)
        values = torch.tensor([[self._maxima[name] for name in names]], device=accelerator.device)
        return dict(zip(names, accelerator.gather(values).amax(0).tolist(), strict=True))


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
        """Collect rollout number ``index`` under ``weights``.

        In synchronous training the same arguments give the same rows. In asynchronous training they give the
        same problems and seeds, sampled with these weights or earlier ones.
        """
        ...


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The tensors of one forward pass: B rows of prompt and response, padded on the right to T tokens."""

    input_ids: Tensor
    """[B, T] int64."""
    attention_mask: Tensor
    """[B, T] int64; 0 on padding."""
    targets: Tensor
    """[B, T] bool; True on tokens that count in the loss."""
    old_log_probs: Tensor
    """[B, T] float32; the engine's log-probabilities at sampling time."""
    advantages: Tensor
    """[B] float32."""
    proximal_log_probs: Tensor | None = None
    """[B, T] float32; the trainer's own log-probabilities before the first update. None unless needed."""
    weights: Tensor | None = None
    """[B, T] float32; importance weights. None for 1, or if the loss computes them."""

    @property
    def num_targets(self) -> int:
        return int(self.targets.sum())

    @property
    def num_rows(self) -> int:
        """Rows with a target."""
        return int(self.targets.any(1).sum())

    @property
    def sample_index(self) -> Tensor:
        """[N] int64; the row of each target."""
        return self.targets.nonzero()[:, 0]

    def to(self, device: torch.device) -> MicroBatch:
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            moved[field.name] = None if value is None else value.to(device)
        return replace(self, **moved)


def make_micro_batch(rows: Sequence[Row], size: int, pad_id: int) -> MicroBatch:
    """Pad ``rows`` to one length, and add empty rows without targets up to ``size`` rows.

    Raises:
        ValueError: there are more than ``size`` rows.
    """
    if len(rows) > size:
        raise ValueError(f"{len(rows)} rows do not fit a micro-batch of {size}")
    width = max((row.length for row in rows), default=2)
    input_ids = torch.full((size, width), pad_id)
    attention_mask = torch.zeros(size, width, dtype=torch.int64)
    attention_mask[:, 0] = 1  # so that an empty row attends to something: a softmax over nothing is NaN
    targets = torch.zeros(size, width, dtype=torch.bool)
    old_log_probs = torch.zeros(size, width)
    advantages = torch.zeros(size)
    for index, row in enumerate(rows):
        sample, start, end = row.sample, len(row.sample.prompt_ids), row.length
        input_ids[index, :end] = torch.tensor([*sample.prompt_ids, *sample.ids])
        attention_mask[index, :end] = 1
        targets[index, start:end] = torch.tensor(row.mask, dtype=torch.bool)
        old_log_probs[index, start:end] = torch.tensor(sample.logprobs)
        advantages[index] = row.advantage
    return MicroBatch(input_ids, attention_mask, targets, old_log_probs, advantages)


def split_rows(
    rows: Sequence[Row], *, updates: int, micro_batches: int, size: int, seed: int
) -> list[list[Row]]:
    """Split ``rows`` into ``updates`` optimiser steps of ``micro_batches`` micro-batches each, in that order.

    Every process must run the same number of forward passes, so micro-batches may be short or empty. Each
    step gets an equal share of random rows. Within a step, rows of similar length are grouped, which saves
    padding.

    Raises:
        ValueError: there are more rows than fit.
    """
    if len(rows) > updates * micro_batches * size:
        raise ValueError(f"{len(rows)} rows do not fit {updates} x {micro_batches} micro-batches of {size}")
    order = list(rows)
    if updates > 1:
        Random(seed).shuffle(order)  # noqa: S311
    split = []
    for update in range(updates):
        own = sorted(order[update::updates], key=lambda row: row.length)
        split += [own[i * size : (i + 1) * size] for i in range(micro_batches)]
    return split


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


@dataclass(frozen=True, slots=True)
class RunParts:
    """The parts of a training run that rollouts and validation share."""

    config: TrainConfig
    settings: RolloutSettings
    """Settings of the episodes."""
    tokenizer: Tokenizer
    worker: RolloutWorker
    """Started in ``loop``."""
    sink: WeightSink
    """Receives the weights and passes them to the engine that ``worker`` samples with."""
    rewards: RewardSet
    """Entered and called in ``loop``."""
    loop: BackgroundLoop
    shard: Shard = Shard()
    """The problems of this process, out of several processes."""
    tools: str = ""
    """Section of the prompts that lists the tools; empty without tools."""

    def render(self, problem: Problem) -> list[int]:
        """Return the prompt of a problem."""
        turns = with_instruction(problem.messages, self.settings.policy.prompt, self.tools)
        options: dict[str, object] = {"enable_thinking": self.config.thinking}
        return self.tokenizer.render_chat(turns, template_kwargs=options)

    async def score(self, problem: Problem, sample: Sample, *, is_void: bool) -> ScoredSample:
        """Return the sample with its reward; None if the sandbox failed."""
        if sample.sandbox_failed:
            return ScoredSample(problem, sample, None, "sandbox_error")
        verdict = await self.rewards.score(sample.finished(is_void=is_void), problem.row)
        return ScoredSample(problem, sample, verdict.value, verdict.reason, parts=verdict.parts)


class RolloutCollector:
    """The `RolloutSource` of a training run. Draws depend only on the run's seed and the rollout's number.

    With ``config.max_staleness`` rollouts of later steps run in the background; call `close` at the end.

    Args:
        parts: of the run.
        problems: the training set, filtered by prompt length.
        on_group: called after each finished group with the number of groups kept so far and wanted.
    """

    def __init__(
        self,
        parts: RunParts,
        problems: Sequence[Problem],
        *,
        on_group: Callable[[int, int], None] = lambda kept, wanted: None,  # noqa: ARG005
    ) -> None:
        config, worker = parts.config, parts.worker
        self._parts, self._config, self._worker = parts, config, worker
        self._settings, self._sink, self._rewards = parts.settings, parts.sink, parts.rewards
        self._loop, self._shard = parts.loop, parts.shard
        self._stream = ProblemStream(problems, seed=config.seed)
        self._count = len(problems)
        self._on_group = on_group
        self._log = EpisodeLog(worker)
        self._queue: RolloutQueue[RolloutBatch] | None = None
        if config.max_staleness:
            # Shared by all rollouts. The earlier ones are served first.
            self._slots = asyncio.Semaphore(config.max_concurrent_episodes)
            self._queue = RolloutQueue(
                self._run_ahead,
                max_staleness=config.max_staleness,
                rollouts=config.steps // config.updates_per_rollout,
                episodes=len(self.draw(0)) * config.group_size,
            )
        self._awaited = -1
        self._taken_at: float | None = None  # of the last rollout, or the start of the first one

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

    def save(self, directory: Path) -> None:
        """Write the finished episodes of later rollouts, and the seeds of the running ones, to a checkpoint.

        Writes nothing in synchronous training. Every process calls this.
        """
        if self._queue is not None:
            self._loop.run(self._snapshot()).save(directory, self._shard.process)

    def restore(self, checkpoint: Path) -> QueueState:
        """Take over the episodes that `save` wrote. The running ones start again with the new weights.

        Raises:
            CheckpointError: the file is damaged.
        """
        state = QueueState.load(checkpoint) if self._queue is not None else QueueState((), ())
        self._log.restore(state.finished)
        return state

    async def close(self) -> None:
        """Cancel rollouts in the background and wait for their clean-up. Call it in the loop."""
        if self._queue is not None:
            await self._queue.close()

    async def _snapshot(self) -> QueueState:
        return self._log.snapshot()

    def draw(self, index: int) -> list[tuple[int, Problem]]:
        """Return this process's problems for a rollout, each with its number among all draws of the run."""
        draws = self._config.draws_per_rollout
        epoch, position = divmod(index * draws, self._count)
        self._stream.restore({**self._stream.state(), "epoch": epoch, "position": position})
        drawn = list(enumerate(self._stream.take(draws), start=index * draws))
        return drawn[self._shard.process :: self._shard.processes]

    async def _collect(self, index: int, weights: Mapping[str, Tensor]) -> RolloutBatch:
        await self._sink.push(index, weights)
        self._awaited = index
        if self._queue is None:
            return await self._roll_out(index, self._worker)
        taken_at = time.monotonic() if self._taken_at is None else self._taken_at
        taken = await self._queue.take(index)
        self._taken_at = time.monotonic()
        draws = self._config.draws_per_rollout  # of all processes: a checkpoint restores their episodes too
        for number in range(index * draws, (index + 1) * draws):
            self._log.forget(self._seeds(number))
        self._add_async_metrics(index, taken, self._taken_at - taken_at)
        return taken.result

    async def _run_ahead(self, index: int, on_start: Callable[[], None]) -> RolloutBatch:
        return await self._roll_out(index, StartCounter(self._log, on_start), self._slots)

    def _seeds(self, number: int) -> list[int]:
        """Return the seeds of the group with this number among all draws of the run."""
        return [sample_seed(self._config.seed, number, place) for place in range(self._config.group_size)]

    async def _roll_out(
        self, index: int, worker: RolloutWorker, slots: asyncio.Semaphore | None = None
    ) -> RolloutBatch:
        began = time.monotonic()
        drawn = self.draw(index)
        wanted = self._config.prompts_per_step // self._shard.processes
        groups = rollout(
            [self._parts.render(problem) for _, problem in drawn],
            worker,
            self._settings,
            seeds=[self._seeds(number) for number, _ in drawn],
            slots=slots,
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
                if index == self._awaited:
                    self._on_group(counts.groups["kept"], wanted)
                if counts.groups["kept"] == wanted:
                    break
        if lost and not scored:
            raise EngineError(f"all {lost} episodes of rollout {index} were lost: see the warnings above")
        self._check_rewards(index, scored)
        if self._config.save_rollouts:
            await asyncio.to_thread(write_rollout, self._path(index), index, scored)
        rows = [
            Row(item.sample, item.advantage, self._train_void(item.sample))
            for item in scored
            if item.advantage is not None
        ]
        return RolloutBatch(
            rows, _metrics(scored, lost, counts, time.monotonic() - began, self._shard.processes)
        )

    def _add_async_metrics(self, index: int, taken: Taken[RolloutBatch], seconds: float) -> None:
        """Add metrics of the queue. ``seconds`` have passed since the last rollout was taken."""
        metrics = taken.result.metrics
        ages = [
            index - version
            for row in taken.result.rows
            for version, counts in zip(row.sample.versions, row.mask, strict=True)
            if counts
        ]
        metrics.add("async/staleness", sum(ages), len(ages))
        metrics.add_maximum("async/staleness_max", max(ages, default=0))
        # Rollouts overlap, so throughput counts the tokens that training consumes, not those of one rollout.
        metrics.set_count("tokens_per_second", seconds / self._shard.processes)
        metrics.add("async/queued_rollouts", taken.queued)
        metrics.add("async/trainer_wait_seconds", taken.trainer_wait_s)
        metrics.add("async/room_wait_seconds", taken.room_wait_s)

    async def sample_plainly(self, count: int) -> list[Sample]:
        """Return one episode for each of the first ``count`` problems of the run, before any training."""
        problems = self._stream.take(count)  # each rollout sets the position that it draws from
        return await asyncio.gather(
            *(
                self._worker.run_episode(
                    self._parts.render(problem),
                    seed=sample_seed(self._config.seed, "plain", number),
                    episode_id=f"plain{number}",
                )
                for number, problem in enumerate(problems)
            )
        )

    async def _score(self, problem: Problem, sample: Sample) -> ScoredSample:
        return await self._parts.score(problem, sample, is_void=sample.outcome.is_void)

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

    def _train_void(self, sample: Sample) -> bool:
        """Return whether a sample is trained on even if it is void or was cut."""
        is_penalised = self._config.overlong_buffer > 0 and sample.outcome == Outcome.LENGTH
        return is_penalised or not self._config.mask_void

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
    calls = sum(len(tool.calls) for tool in tools)
    if calls:
        means.add("calls", calls, len(samples))
        means.add("calls_per_flush", calls, len(tools))
        failed = sum(call.status == "error" for tool in tools for call in tool.calls)
        means.add("call_errors", failed, calls)
    means.add("tool_wait", sum(sample.tool_wait_seconds for sample in samples), len(samples))
    means.add("response_tokens", sampled, len(samples))
    means.add("tokens_per_second", sampled, seconds / processes)  # sum over all processes
    means.add("rollout_seconds", seconds)
    return means
