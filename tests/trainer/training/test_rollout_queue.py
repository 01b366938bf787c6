from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.deferral.episode import Outcome
from service.engines.checkpoint import CheckpointError
from service.episode.events import ExecutedTool, InvokedBlock
from trainer.training.episodes import Sample
from trainer.training.rollout_queue import EpisodeLog, QueueState, RolloutQueue, StartCounter

TOOL = ExecutedTool(
    id="s0_0",
    blocks=(InvokedBlock("print(1)", 3, 12.5),),
    delayed=0,
    output="1",
    status="ok",
    started_at=1.25,
    finished_at=2.5,
    flushed_at=1.0,
    wall_ms=0.1 + 0.2,
    waited_ms=3.0,
    runs=((1.25, 2.5),),
    container="c",
    requested_by="model",
)


def sample(seed: int) -> Sample:
    return Sample(
        (1, 2),
        (3, 4, 5),
        (1, 0, 1),
        (-0.1, 0.0, -1.0 / 3),
        "text \N{GREEK SMALL LETTER ALPHA}",
        Outcome.ANSWER,
        "1",
        (TOOL,),
        seconds=0.7,
        seed=seed,
        began_at=1.5,
        dropped_ends=((2, 9, -0.25),),
        versions=(7, 0, 8),
    )


class Rollouts:
    """Rollouts that finish when ``release`` is called, and record the version that they started with."""

    def __init__(self) -> None:
        self.version = 0
        self.started: dict[int, int] = {}
        self.cancelled: list[int] = []
        self.errors: dict[int, Exception] = {}
        self.on_start: dict[int, Callable[[], None]] = {}
        self._released: dict[int, asyncio.Event] = {}

    async def start(self, index: int, on_start: Callable[[], None]) -> int:
        assert index not in self.started
        self.started[index] = self.version
        self.on_start[index] = on_start
        try:
            await self._event(index).wait()
        except asyncio.CancelledError:
            self.cancelled.append(index)
            raise
        if index in self.errors:
            raise self.errors[index]
        return index * 10

    def release(self, *indices: int) -> None:
        for index in indices:
            self._event(index).set()

    def _event(self, index: int) -> asyncio.Event:
        return self._released.setdefault(index, asyncio.Event())


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def queue(
    rollouts: Rollouts, *, ahead: int = 2, end: int = 100, episodes: int = 2, clock: Clock | None = None
) -> RolloutQueue[int]:
    return RolloutQueue(
        rollouts.start,
        max_staleness=ahead,
        rollouts=end,
        episodes=episodes,
        clock=clock or Clock(),
    )


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@given(
    order=st.permutations(range(6)),
    ahead=st.integers(1, 7),
    first=st.integers(0, 3),
)
def test_no_rollout_starts_too_early_and_each_is_taken_once(
    order: Sequence[int], ahead: int, first: int
) -> None:
    """In any order in which rollouts finish, and at any step at which a run resumes."""

    async def check() -> None:
        rollouts = Rollouts()
        line = queue(rollouts, ahead=ahead, end=6)
        finishing = iter(order)
        for index in range(first, 6):
            rollouts.version = index
            taking = asyncio.create_task(line.take(index))
            await settle()
            assert max(rollouts.started) == min(index + ahead, 5)
            while not taking.done():
                rollouts.release(next(finishing))
                await settle()
            assert (await taking).result == index * 10
        assert sorted(rollouts.started) == list(range(first, 6))
        assert all(index - version <= ahead for index, version in rollouts.started.items())

    asyncio.run(check())


async def test_rollouts_run_while_nothing_is_taken() -> None:
    rollouts = Rollouts()
    line = queue(rollouts)
    rollouts.release(0, 1, 2)
    assert (await line.take(0)).queued == 0
    await settle()
    taken = await line.take(1)  # starts rollout 3, which is not released
    assert (taken.result, taken.queued) == (10, 2)
    await line.close()


async def test_error_is_raised_when_its_rollout_is_taken() -> None:
    rollouts = Rollouts()
    line = queue(rollouts)
    rollouts.errors[1] = ValueError("broken")
    rollouts.release(0, 1)
    assert (await line.take(0)).result == 0
    with pytest.raises(ValueError, match="broken"):
        await line.take(1)
    await line.close()


async def test_close_cancels_rollouts_and_waits_for_them() -> None:
    rollouts = Rollouts()
    line = queue(rollouts)
    rollouts.release(0)
    await line.take(0)
    await line.close()
    assert rollouts.cancelled == [1, 2]
    await line.close()


async def test_waits_of_trainer_and_rollouts() -> None:
    rollouts, clock = Rollouts(), Clock()
    line = queue(rollouts, ahead=1, episodes=2, clock=clock)
    taking = asyncio.create_task(line.take(0))
    await settle()
    clock.now += 5.0
    for index in (0, 0, 1):
        rollouts.on_start[index]()
    rollouts.release(0)
    await settle()
    assert (await taking).trainer_wait_s == 5.0
    clock.now += 2.0  # the second episode of rollout 1 still waits for a slot, so none is free
    rollouts.on_start[1]()
    clock.now += 3.0  # all have got their slots: the next rollout could start
    rollouts.release(1, 2)
    assert (await line.take(1)).room_wait_s == 0.0
    clock.now += 1.0
    taken = await line.take(2)
    assert (taken.room_wait_s, taken.trainer_wait_s) == (3.0, 0.0)
    await line.close()


class Worker:
    """Worker that records calls. The episodes of the seeds ``blocked`` never end."""

    def __init__(self, *blocked: int) -> None:
        self.calls: list[int] = []
        self._blocked = blocked

    async def run_episode(self, prompt_ids: Sequence[int], *, seed: int, episode_id: str) -> Sample:
        self.calls.append(seed)
        if seed in self._blocked:
            await asyncio.sleep(3600)
        return replace(sample(seed), prompt_ids=tuple(prompt_ids))


async def test_finished_episodes_do_not_run_again_and_running_ones_do(tmp_path: Path) -> None:
    log = EpisodeLog(Worker(2))
    first = await log.run_episode([1, 2], seed=1, episode_id="a")
    running = asyncio.create_task(log.run_episode([1, 2], seed=2, episode_id="b"))
    await settle()
    log.snapshot().save(tmp_path, process=0)
    running.cancel()

    state = QueueState.load(tmp_path)
    assert state.running == (2,)
    worker = Worker()
    resumed = EpisodeLog(worker)
    resumed.restore(state.finished)
    assert await resumed.run_episode([1, 2], seed=1, episode_id="a") == first
    assert (await resumed.run_episode([1, 2], seed=2, episode_id="b")).seed == 2
    assert worker.calls == [2]
    resumed.forget([1])
    assert [kept.seed for kept in resumed.snapshot().finished] == [2]


async def test_cancelled_episode_is_in_no_snapshot() -> None:
    log = EpisodeLog(Worker(2))
    task = asyncio.create_task(log.run_episode([1], seed=2, episode_id="a"))
    await settle()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert log.snapshot() == QueueState((), ())


async def test_counter_reports_start_before_the_episode_ends() -> None:
    starts: list[str] = []
    worker = StartCounter(Worker(2), lambda: starts.append("started"))
    task = asyncio.create_task(worker.run_episode([1], seed=2, episode_id="a"))
    await settle()
    assert (starts, task.done()) == (["started"], False)
    task.cancel()


def test_state_of_all_processes_is_restored_exactly(tmp_path: Path) -> None:
    QueueState((sample(1), sample(2**63 - 1)), (5, 6)).save(tmp_path, process=0)
    QueueState((sample(3), sample(1)), (7,)).save(tmp_path, process=1)
    assert QueueState.load(tmp_path) == QueueState((sample(1), sample(2**63 - 1), sample(3)), (5, 6, 7))


def test_checkpoint_without_a_queue_has_an_empty_state(tmp_path: Path) -> None:
    assert QueueState.load(tmp_path) == QueueState((), ())


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", *(gzip.compress(text, mtime=0) for text in (b"{", b"{}", b'{"finished": [{}]}'))],
    ids=["empty", "no gzip", "no JSON", "no fields", "no episode"],
)
def test_damaged_state_is_reported(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rollout_queue-0.json.gz").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"rollout_queue-0\.json\.gz is damaged: remove it"):
        QueueState.load(tmp_path)


def test_state_is_readable_json(tmp_path: Path) -> None:
    QueueState((sample(1),), (2,)).save(tmp_path, process=0)
    state = json.loads(gzip.decompress((tmp_path / "rollout_queue-0.json.gz").read_bytes()))
    assert state["running"] == [2]
    assert state["finished"][0]["ids"] == [3, 4, 5]
