"""Asynchronous training: rollouts of later steps run while a step trains.

Version ``k`` of the weights is the one that rollout ``k`` is trained on. With ``max_staleness`` S, rollout
``k`` starts once version ``k - S`` is loaded. Weights are replaced between two tokens of running episodes,
which keep their sandbox session. So no token is more than S versions old when it is trained on, and no
rollout is discarded.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from service.engines.checkpoint import CheckpointError
from trainer.training.episodes import RolloutWorker, Sample
from trainer.training.run_files import write_atomically

T = TypeVar("T")

QUEUE_FILES: Final = "rollout_queue-*.json.gz"
_SAMPLES: Final = TypeAdapter(list[Sample])


class EpisodeLog:
    """A `RolloutWorker` that keeps finished episodes until their rollout is trained on.

    An episode is identified by its seed, which depends only on the run's seed, the number of its draw and its
    place in the group.
    """

    def __init__(self, worker: RolloutWorker) -> None:
        self._worker = worker
        self._running: set[int] = set()
        self._finished: dict[int, Sample] = {}

    async def run_episode(self, prompt_ids: Sequence[int], *, seed: int, episode_id: str) -> Sample:
        """Run one episode, or return it if it was finished before; see `RolloutWorker.run_episode`."""
        if (known := self._finished.get(seed)) is not None:
            return known
        self._running.add(seed)
        try:
            sample = await self._worker.run_episode(prompt_ids, seed=seed, episode_id=episode_id)
        finally:
            self._running.discard(seed)
        self._finished[seed] = sample
        return sample

    def forget(self, seeds: Iterable[int]) -> None:
        """Drop the episodes of a rollout that is trained on now."""
        for seed in seeds:
            self._finished.pop(seed, None)

    def snapshot(self) -> QueueState:
        """Return the finished episodes and the seeds of the running ones."""
        return QueueState(tuple(self._finished.values()), tuple(sorted(self._running)))

    def restore(self, samples: Iterable[Sample]) -> None:
        """Take over finished episodes of an earlier process."""
        self._finished.update((sample.seed, sample) for sample in samples)


@dataclass(frozen=True, slots=True)
class QueueState:
    """The part of a checkpoint that an asynchronous run adds."""

    finished: tuple[Sample, ...]
    """Finished episodes of rollouts that are not trained on yet."""
    running: tuple[int, ...]
    """Seeds of the episodes that a resumed run starts again."""

    def save(self, directory: Path, process: int) -> None:
        """Write the state of one training process beside a checkpoint."""
        finished = _SAMPLES.dump_python(list(self.finished), mode="json")
        text = json.dumps({"running": self.running, "finished": finished})
        path = directory / QUEUE_FILES.replace("*", str(process))
        write_atomically(path, gzip.compress(text.encode(), compresslevel=1, mtime=0))

    @classmethod
    def load(cls, checkpoint: Path) -> QueueState:
        """Read the state of all processes, each episode once; it is empty if the checkpoint has none.

        Raises:
            CheckpointError: a file is damaged.
        """
        finished: list[Sample] = []
        running: list[int] = []
        for path in sorted(checkpoint.glob(QUEUE_FILES)):
            try:
                state = json.loads(gzip.decompress(path.read_bytes()))
                finished += _SAMPLES.validate_python(state["finished"])
                running += map(int, state["running"])
            except (OSError, EOFError, ValueError, KeyError, TypeError, ValidationError) as error:
                raise CheckpointError(
                    f"{path} is damaged: remove it to start its episodes again ({type(error).__name__})"
                ) from error
        return cls(tuple({sample.seed: sample for sample in finished}.values()), tuple(running))


@dataclass(frozen=True, slots=True)
class Taken(Generic[T]):
    """A rollout taken from the queue."""

    result: T
    queued: int
    """Finished rollouts in the queue when the trainer asked for this one, including it."""
    trainer_wait_s: float
    """Seconds that the trainer waited."""
    room_wait_s: float
    """Seconds that free episode slots waited until ``max_staleness`` allowed this rollout to start."""


class StartCounter:
    """A `RolloutWorker` that calls ``on_start`` when an episode gets its slot."""

    def __init__(self, worker: RolloutWorker, on_start: Callable[[], None]) -> None:
        self._worker = worker
        self._on_start = on_start

    async def run_episode(self, prompt_ids: Sequence[int], *, seed: int, episode_id: str) -> Sample:
        self._on_start()
        return await self._worker.run_episode(prompt_ids, seed=seed, episode_id=episode_id)


@dataclass(slots=True)
class _QueueEntry(Generic[T]):
    room_wait_s: float
    not_started: int
    task: asyncio.Task[T] | None = None


class RolloutQueue(Generic[T]):
    """Rollouts that run ahead of training. Used in one event loop.

    Args:
        start: returns the coroutine of a rollout, given its number and a function to call when one of its
            episodes gets a slot.
        max_staleness: number of rollouts that may run ahead of the one that is trained on.
        rollouts: number of rollouts of the whole run; none beyond is started.
        episodes: number of episodes of each rollout.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        start: Callable[[int, Callable[[], None]], Coroutine[Any, Any, T]],
        *,
        max_staleness: int,
        rollouts: int,
        episodes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start = start
        self._ahead = max_staleness
        self._end = rollouts
        self._episodes = episodes
        self._clock = clock
        self._entries: dict[int, _QueueEntry[T]] = {}
        self._room_since: float | None = None

    async def take(self, index: int) -> Taken[T]:
        """Start rollouts up to ``index + max_staleness``; wait for number ``index`` and remove it.

        Load the weights of version ``index`` first.

        Raises:
            Exception: the error of the rollout.
        """
        for number in range(index, max(index + 1, min(index + self._ahead + 1, self._end))):
            if number not in self._entries:
                waited = 0.0 if self._room_since is None else self._clock() - self._room_since
                self._room_since = None
                entry: _QueueEntry[T] = _QueueEntry(waited, self._episodes)
                self._entries[number] = entry
                entry.task = asyncio.create_task(self._run(number, entry))
        entry = self._entries[index]
        assert entry.task is not None  # noqa: S101 - set above
        queued = sum(other.task is not None and other.task.done() for other in self._entries.values())
        asked = self._clock()
        result = await entry.task
        del self._entries[index]
        return Taken(result, queued, self._clock() - asked, entry.room_wait_s)

    async def close(self) -> None:
        """Cancel all rollouts and wait for their clean-up."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        self._entries.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, number: int, entry: _QueueEntry[T]) -> T:
        def on_start() -> None:
            entry.not_started -= 1
            self._note_room()

        try:
            return await self._start(number, on_start)
        finally:
            entry.not_started = 0
            self._note_room()

    def _note_room(self) -> None:
        """Start the clock of `Taken.room_wait_s` once all started rollouts have got their slots."""
        if self._room_since is None and not any(entry.not_started for entry in self._entries.values()):
            self._room_since = self._clock()
