from __future__ import annotations

import asyncio
import json
import sys
import threading
import types
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from service.deferral.answer import last_boxed
from service.deferral.episode import Outcome
from service.deferral.policy import DeferralPolicy
from service.engines.base import EngineError, Sampling, TokenChunk
from service.sandbox.base import ExecutionResult, OnOutput, Session, SessionLimits
from tests.support.reply_engine import ReplyEngine
from tests.support.scripted import EOS, ScriptedSandbox, ScriptedSession, printed
from trainer.data.problems import Problem
from trainer.rewards import FinishedEpisode, Reward, RewardError
from trainer.rewards.registry import RewardConfigError, RewardSet, RewardSpec
from trainer.training.config import TrainConfig
from trainer.training.episodes import EpisodeLostError, LocalRolloutWorker, RolloutWorker, Sample
from trainer.training.generation import rollout_settings
from trainer.training.rollouts import BackgroundLoop, Means, RolloutCollector, RunParts, Shard
from trainer.weight_sync.sinks import EngineSink

PROBLEMS = [Problem(f"p:{i}", f"question {i}", "1") for i in range(7)]
RUN = "```python\nprint(1)\n```<tool_call>"


class PlainScorer:
    """Reward 1 for an identical answer."""

    async def score(self, response_text: str, gold: str) -> Reward:
        right = last_boxed(response_text) == gold
        return Reward(float(right), "correct" if right else "incorrect")


class LearningEngine(ReplyEngine):
    """Engine that records its weights. Replies may depend on the number of earlier identical requests."""

    def __init__(self, replies: Mapping[str, list[str]]) -> None:
        self.loaded: list[Mapping[str, Tensor]] = []
        self.asked: dict[str, int] = {}

        def reply(context: str) -> str:
            key = next(name for name in replies if name in context)
            self.asked[key] = self.asked.get(key, -1) + 1
            return replies[key][self.asked[key] % len(replies[key])]

        super().__init__(reply)

    async def load_weights(self, source: Mapping[str, Tensor], *, version: int = 0) -> None:
        self.loaded.append(source)


@pytest.fixture
def loop() -> Iterator[BackgroundLoop]:
    with BackgroundLoop() as running:
        yield running


def config(run_dir: Path, **changes: object) -> TrainConfig:
    values: dict[str, object] = {
        "model": "m", "data": ["d"], "run_dir": run_dir, "prompts_per_step": 2, "group_size": 2,
        "oversample": 2.0, "min_valid_samples": 2, "mini_batch_samples": 4, "micro_batch_samples": 2,
    }  # fmt: skip
    return TrainConfig.model_validate({**values, **changes})


def collector(
    settings: TrainConfig,
    engine: Any,
    loop: BackgroundLoop,
    *,
    answer: ExecutionResult | None = None,
    scorer: Any = None,
    rewards: RewardSet | None = None,
    problems: Sequence[Problem] = tuple(PROBLEMS),
    worker: RolloutWorker | None = None,
    shard: Shard = Shard(),  # noqa: B008 - frozen
) -> RolloutCollector:
    sandbox = ScriptedSandbox(lambda blocks: answer or printed("1"))
    episodes = rollout_settings(settings, DeferralPolicy())
    parts = RunParts(
        settings,
        episodes,
        engine.tokenizer,
        worker or LocalRolloutWorker(engine, sandbox, episodes),
        EngineSink(engine),
        rewards or RewardSet(scorer=scorer or PlainScorer()),
        loop,
        shard,
    )
    return RolloutCollector(parts, problems)


def boxed(value: int) -> str:
    return f"so \\boxed{{{value}}}{EOS}"


def test_rollouts_draw_consecutive_problems_and_epochs_differ(tmp_path: Path, loop: BackgroundLoop) -> None:
    source = collector(config(tmp_path), LearningEngine({}), loop)
    drawn = [source.draw(index) for index in range(7)]
    assert [number for part in drawn for number, _ in part] == list(range(28))
    ids = [problem.id for part in drawn for _, problem in part]
    epochs = [ids[i : i + 7] for i in range(0, 28, 7)]
    assert all(sorted(epoch) == [problem.id for problem in PROBLEMS] for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert source.draw(3) == drawn[3]  # independent of earlier draws


def test_processes_split_the_draw(tmp_path: Path, loop: BackgroundLoop) -> None:
    whole = collector(config(tmp_path), LearningEngine({}), loop).draw(1)
    parts = [
        collector(config(tmp_path), LearningEngine({}), loop, shard=Shard(process, 2)).draw(1)
        for process in (0, 1)
    ]
    assert sorted(parts[0] + parts[1]) == whole
    assert [len(part) for part in parts] == [2, 2]


def test_keeps_groups_with_signal_in_draw_order(tmp_path: Path, loop: BackgroundLoop) -> None:
    source = collector(config(tmp_path), LearningEngine({}), loop)
    dull, *others = [problem.question for _, problem in source.draw(0)]
    engine = LearningEngine({dull: [boxed(1)], **{name: [boxed(1), boxed(0)] for name in others}})
    collected = collector(config(tmp_path), engine, loop).collect(0, {})
    questions = [engine.tokenizer.decode(row.sample.prompt_ids) for row in collected.rows]
    assert [next(o for o in others if o in q) for q in questions] == [others[0]] * 2 + [others[1]] * 2
    assert sorted(row.advantage for row in collected.rows) == pytest.approx(
        [-0.7071] * 2 + [0.7071] * 2, abs=1e-4
    )
    assert len(engine.loaded) == 1


def test_too_few_groups_give_fewer_rows(tmp_path: Path, loop: BackgroundLoop) -> None:
    engine = LearningEngine({"question": [boxed(1)]})
    assert collector(config(tmp_path), engine, loop).collect(0, {}).rows == []


@pytest.mark.parametrize(("reply", "answer", "scorer", "reason"), [
    (boxed(1), None, "broken", "no worker"),
    (RUN, ExecutionResult("", "", "sandbox_error", wall_seconds=0, waited_seconds=0), None, "sandbox_error"),
])  # fmt: skip
def test_samples_without_reward_are_not_trained_on(
    tmp_path: Path,
    loop: BackgroundLoop,
    reply: str,
    answer: ExecutionResult | None,
    scorer: str | None,
    reason: str,
) -> None:
    class Broken:
        async def score(self, response_text: str, gold: str) -> Reward:
            raise RewardError("no worker")

    engine = LearningEngine({"result: SandboxError": [boxed(1)], "question": [reply]})
    source = collector(config(tmp_path), engine, loop, answer=answer, scorer=Broken() if scorer else None)
    assert source.collect(0, {}).rows == []
    table = pq.read_table(tmp_path / "rollouts" / "rollout-000000.parquet").to_pylist()
    assert {(record["reward"], record["reason"]) for record in table} == {(None, reason)}


def test_void_sample_has_reward_zero_and_is_not_trained_on(tmp_path: Path, loop: BackgroundLoop) -> None:
    # Three samples per group: correct, incorrect, void.
    engine = LearningEngine({"question": [boxed(1), boxed(0), f"hm{EOS}"]})
    settings = config(tmp_path, group_size=3, mini_batch_samples=6)
    rows = collector(settings, engine, loop).collect(0, {}).rows
    assert len(rows) == 4
    # Rewards 1, 0, 0: the void sample counts in mean and standard deviation.
    assert sorted({round(row.advantage, 3) for row in rows}) == [-0.577, 1.155]


def test_penalised_cut_samples_are_trained_on(tmp_path: Path, loop: BackgroundLoop) -> None:
    """Void samples of the same group stay masked."""
    cut = "x" * 9_000
    engine = LearningEngine({"question": [boxed(1), boxed(0), cut, f"hm{EOS}"]})
    settings = config(tmp_path, group_size=4, mini_batch_samples=None, overlong_buffer=0.25)
    rows = collector(settings, engine, loop).collect(0, {}).rows
    lengths = [row for row in rows if row.sample.outcome == Outcome.LENGTH]
    assert (len(rows), len(lengths)) == (6, 2)
    for row in lengths:
        assert row.mask == row.sample.sampled
        assert sum(row.mask) > 1_000
        assert row.advantage == min(other.advantage for other in rows)
    assert all(sum(row.mask) for row in rows)


def test_every_sample_is_saved_with_reward_and_advantage(tmp_path: Path, loop: BackgroundLoop) -> None:
    engine = LearningEngine({"result: 1": [boxed(1), boxed(0)], "question": [RUN]})
    collected = collector(config(tmp_path), engine, loop).collect(5, {})
    records = pq.read_table(tmp_path / "rollouts" / "rollout-000005.parquet").to_pylist()
    assert [record["ids"] for record in records] == [list(row.sample.ids) for row in collected.rows]
    assert {record["rollout"] for record in records} == {5}
    assert {record["outcome"] for record in records} == {"answer"}
    assert all(record["advantage"] is not None for record in records)
    assert all('"code": "print(1)"' in record["tools"] for record in records)
    assert all(record["executed"] == 1 for record in records)
    assert all(record["began_at"] > 1e9 for record in records)


class LosingWorker:
    """Worker that loses the episodes with the given ids, or all episodes."""

    def __init__(self, lost: Sequence[str] | None, worker: RolloutWorker) -> None:
        self._lost, self._worker = lost, worker

    async def run_episode(self, prompt_ids: Sequence[int], *, seed: int, episode_id: str) -> Sample:
        if self._lost is None or episode_id in self._lost:
            raise EpisodeLostError("gone")
        return await self._worker.run_episode(prompt_ids, seed=seed, episode_id=episode_id)


def losing(lost: Sequence[str] | None, engine: Any, settings: TrainConfig) -> LosingWorker:
    episodes = rollout_settings(settings, DeferralPolicy())
    return LosingWorker(lost, LocalRolloutWorker(engine, ScriptedSandbox(lambda b: printed("1")), episodes))


def test_lost_episodes_are_counted(tmp_path: Path, loop: BackgroundLoop) -> None:
    engine = LearningEngine({"question": [boxed(1), boxed(2)]})
    settings = config(tmp_path, group_size=4, mini_batch_samples=None)
    source = collector(settings, engine, loop, worker=losing(("s0",), engine, settings))
    collected = source.collect(0, {})
    assert len(collected.rows) == 7
    assert collected.metrics.reduced(Accelerator(cpu=True))["samples/lost"] == 1 / 8


def test_rollout_without_episodes_is_an_error(tmp_path: Path, loop: BackgroundLoop) -> None:
    engine = LearningEngine({})
    source = collector(config(tmp_path), engine, loop, worker=losing(None, engine, config(tmp_path)))
    with pytest.raises(EngineError, match="all 8 episodes of rollout 0 were lost"):
        source.collect(0, {})


class VersionedEngine(LearningEngine):
    """Engine whose tokens report the version of its weights."""

    def __init__(self, replies: Mapping[str, list[str]]) -> None:
        super().__init__(replies)
        self.version = -1
        self.changed: list[asyncio.Event] = []

    async def load_weights(self, source: Mapping[str, Tensor], *, version: int = 0) -> None:
        self.version = version
        for event in self.changed:
            event.set()

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, stop_token_ids: Collection[int] = ()
    ) -> AsyncGenerator[TokenChunk, None]:
        async with aclosing(super().generate(prompt_ids, sampling, stop_token_ids)) as chunks:
            async for chunk in chunks:
                yield chunk._replace(weights_version=self.version)


class HeldSession(ScriptedSession):
    """Session whose flush waits for weights of version 1, if the engine has older ones."""

    def __init__(self, engine: VersionedEngine) -> None:
        super().__init__(lambda blocks: printed("1"))
        self._engine = engine

    async def flush(self, on_output: OnOutput | None = None) -> ExecutionResult:
        if "ahead" in self.pending[0] and self._engine.version < 1:
            event = asyncio.Event()
            self._engine.changed.append(event)
            await event.wait()
        return await super().flush(on_output)


class HeldSandbox(ScriptedSandbox):
    def __init__(self, engine: VersionedEngine) -> None:
        super().__init__(lambda blocks: printed("1"))
        self._engine = engine

    def session(self, limits: SessionLimits, tools: object = None) -> Session:
        self.sessions.append(HeldSession(self._engine))
        return self.sessions[-1]


def ahead_of(
    settings: TrainConfig, loop: BackgroundLoop
) -> tuple[RolloutCollector, VersionedEngine, HeldSandbox]:
    """A collector of asynchronous rollouts. The code of rollout 1 waits for weights of version 1."""
    drawn = collector(settings, LearningEngine({}), loop).draw(1)
    run = {problem.question: ["```python\n'ahead'\n```<tool_call>"] for _, problem in drawn}
    engine = VersionedEngine(
        {"result: 1": [boxed(1), boxed(0)], **run, "question": ["```python\n1\n```<tool_call>"]}
    )
    sandbox = HeldSandbox(engine)
    worker = LocalRolloutWorker(engine, sandbox, rollout_settings(settings, DeferralPolicy()))
    return collector(settings, engine, loop, worker=worker), engine, sandbox


def asynchronous(run_dir: Path) -> TrainConfig:
    """One group a rollout out of 7 problems, so that rollouts 0 and 1 have different problems."""
    return config(run_dir, prompts_per_step=2, oversample=1.0, max_staleness=1, steps=3, save_every=3)


def test_partial_episode_keeps_its_session_and_continues_with_new_weights(
    tmp_path: Path, loop: BackgroundLoop
) -> None:
    source, engine, sandbox = ahead_of(asynchronous(tmp_path), loop)
    first = source.collect(0, {})
    assert {version for row in first.rows for version in row.sample.versions} == {0}
    while len(engine.changed) < 4:  # rollout 1 runs in the background until its code waits
        loop.run(asyncio.sleep(0))
    sessions = list(sandbox.sessions)
    second = source.collect(1, {})
    assert sandbox.sessions[:8] == sessions[:8]
    for row in second.rows:
        sampled = [v for v, m in zip(row.sample.versions, row.sample.sampled, strict=True) if m]
        assert sampled == sorted(sampled)
        assert set(sampled) == {0, 1}
        assert len(row.sample.tools) == 1
    assert sum(not session.closed for session in sessions[4:8]) == 0
    metrics = second.metrics.reduced(Accelerator(cpu=True))
    assert metrics["async/staleness_max"] == 1
    assert 0 < metrics["async/staleness"] < 1
    assert metrics["async/queued_rollouts"] == 0
    assert {"async/trainer_wait_seconds", "async/room_wait_seconds"} <= metrics.keys()
    loop.run(source.close())


def test_asynchronous_rollouts_have_the_problems_and_seeds_of_synchronous_ones(
    tmp_path: Path, loop: BackgroundLoop
) -> None:
    settings = asynchronous(tmp_path / "a")
    source, _, _ = ahead_of(settings, loop)
    ahead = [source.collect(index, {}) for index in range(3)]
    alternating = collector(
        config(tmp_path / "b", prompts_per_step=2, oversample=1.0, steps=3, save_every=3),
        LearningEngine({"result: 1": [boxed(1), boxed(0)], "question": [RUN]}),
        loop,
    )
    for index, batch in enumerate(ahead):
        rows = alternating.collect(index, {}).rows
        assert [row.sample.seed for row in batch.rows] == [row.sample.seed for row in rows]
        assert [row.sample.prompt_ids for row in batch.rows] == [row.sample.prompt_ids for row in rows]
    loop.run(source.close())


def test_resumed_queue_keeps_finished_episodes(tmp_path: Path, loop: BackgroundLoop) -> None:
    source, engine, _ = ahead_of(asynchronous(tmp_path), loop)
    source.collect(0, {})
    while len(engine.changed) < 4:
        loop.run(asyncio.sleep(0))
    source.collect(1, {})
    while len(loop.run(source._snapshot()).finished) < 4:  # rollout 2
        loop.run(asyncio.sleep(0))
    source.save(tmp_path)
    expected = [row.sample for row in source.collect(2, {}).rows]
    loop.run(source.close())

    resumed, other, sandbox = ahead_of(asynchronous(tmp_path), loop)
    state = resumed.restore(tmp_path)
    assert (len(state.finished), state.running) == (4, ())
    rows = resumed.collect(2, {}).rows
    assert [row.sample for row in rows] == expected
    assert (other.asked, sandbox.sessions) == ({}, [])
    loop.run(resumed.close())


def test_running_episodes_are_saved_as_seeds(tmp_path: Path, loop: BackgroundLoop) -> None:
    source, engine, _ = ahead_of(asynchronous(tmp_path), loop)
    source.collect(0, {})
    while len(engine.changed) < 4:
        loop.run(asyncio.sleep(0))
    source.save(tmp_path)
    resumed, _, sandbox = ahead_of(asynchronous(tmp_path), loop)
    state = resumed.restore(tmp_path)
    assert (state.finished, len(state.running)) == ((), 4)
    rows = resumed.collect(1, {}).rows
    assert sorted(row.sample.seed for row in rows) == sorted(state.running)
    assert {v for row in rows for v, m in zip(row.sample.versions, row.sample.mask, strict=True) if m} == {1}
    loop.run(resumed.close())
    loop.run(source.close())
    assert all(session.closed for session in sandbox.sessions)


def test_synchronous_run_adds_nothing_to_checkpoints(tmp_path: Path, loop: BackgroundLoop) -> None:
    source = collector(config(tmp_path), LearningEngine({}), loop)
    source.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


async def where() -> tuple[asyncio.AbstractEventLoop, str]:
    return asyncio.get_running_loop(), threading.current_thread().name


def test_background_loop_runs_in_one_thread() -> None:
    with BackgroundLoop() as loop:
        first, second = loop.run(where()), loop.run(where())
    assert first == second
    assert first[1] == "episodes"


def test_background_loop_raises_exception_in_caller() -> None:
    async def fail() -> None:
        raise ValueError("no")

    with BackgroundLoop() as loop, pytest.raises(ValueError, match="no"):
        loop.run(fail())


def test_interrupt_cancels_coroutine_and_waits_for_clean_up(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    running = threading.Event()

    async def work() -> None:
        try:
            running.set()
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            done.append("clean")

    class Interrupted:
        """A future whose waiter is interrupted (Ctrl-C) while the coroutine runs."""

        def __init__(self, inner: object) -> None:
            self.inner = inner

        def result(self, timeout: float | None = None) -> object:
            running.wait()
            raise KeyboardInterrupt

        def cancel(self) -> bool:
            return self.inner.cancel()  # type: ignore[attr-defined,no-any-return]

    submit = asyncio.run_coroutine_threadsafe
    with BackgroundLoop() as loop:
        monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", lambda *given: Interrupted(submit(*given)))
        with pytest.raises(KeyboardInterrupt):
            loop.run(work())
    assert done == ["clean"]


def test_means_are_over_items() -> None:
    means = Means()
    means.add("a", 1.0, 1.0)
    means.add("a", 9.0, 9.0)
    means.add("nothing", 0.0, 0.0)
    alone: Any = SimpleNamespace(num_processes=1)
    assert means.reduced(alone) == {"a": 1.0}
    assert Means().reduced(alone) == {}


def test_maximum_is_over_processes() -> None:
    means = Means()
    means.add_maximum("age", 1.0)
    means.add_maximum("age", 3.0)
    means.add_maximum("age", 2.0)
    alone: Any = SimpleNamespace(num_processes=1)
    assert means.reduced(alone) == {"age": 3.0}
    other = torch.tensor([[5.0]])
    two: Any = SimpleNamespace(
        num_processes=2,
        device="cpu",
        reduce=lambda pairs: pairs,
        gather=lambda values: torch.cat([values, other]),
    )
    assert means.reduced(two) == {"age": 5.0}


def test_means_add_up_over_processes() -> None:
    means = Means()
    means.add("a", 1.0, 1.0)
    other = torch.tensor([[5.0, 2.0]])
    two: Any = SimpleNamespace(num_processes=2, device="cpu", reduce=lambda pairs: pairs + other)
    assert means.reduced(two) == {"a": pytest.approx(2.0)}


@pytest.fixture
def own_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module with reward functions."""
    module = types.ModuleType("own_rewards")

    async def tokens(episode: FinishedEpisode, row: Mapping[str, Any]) -> Reward:
        return Reward(float(episode.tokens), row["kind"])

    async def only_right(episode: FinishedEpisode, row: Mapping[str, Any]) -> float | None:
        return 1.0 if episode.answer == row["answer"] else None

    async def broken(episode: FinishedEpisode, row: Mapping[str, Any]) -> float:
        raise KeyError("column")

    module.__dict__.update(tokens=tokens, only_right=only_right, broken=broken)
    monkeypatch.setitem(sys.modules, "own_rewards", module)


def reward_set(*names: str) -> RewardSet:
    specs = [RewardSpec(name="math"), *(RewardSpec(name=f"own_rewards:{n}", weight=0.25) for n in names)]
    return RewardSet(specs, scorer=PlainScorer())  # type: ignore[arg-type]


@pytest.mark.usefixtures("own_rewards")
def test_own_rewards_are_weighted_recorded_and_drawn_as_curves(tmp_path: Path, loop: BackgroundLoop) -> None:
    problems = [replace(problem, columns={"kind": f"kind{i % 2}"}) for i, problem in enumerate(PROBLEMS)]
    engine = LearningEngine({"question": [boxed(1), f"long {boxed(0)}"]})
    source = collector(config(tmp_path), engine, loop, rewards=reward_set("tokens"), problems=problems)
    collected = source.collect(0, {})
    table = pq.read_table(tmp_path / "rollouts" / "rollout-000000.parquet").to_pylist()
    for record in table:
        parts = json.loads(record["rewards"])
        right = record["answer"] == "1"
        assert parts["math"] == {"value": float(right), "reason": "correct" if right else "incorrect"}
        assert parts["tokens"]["value"] == sum(record["mask"])
        assert record["reward"] == parts["math"]["value"] + 0.25 * sum(record["mask"])
        assert record["reason"] == parts["math"]["reason"]
    curves = collected.metrics.reduced(Accelerator(cpu=True))
    assert curves["rewards/math"] == curves["rewards/math/correct"] == curves["rewards/math/incorrect"] == 0.5
    assert curves["rewards/tokens"] == curves["response_tokens"]
    assert sum(curves.get(f"rewards/tokens/kind{i}", 0) for i in (0, 1)) == pytest.approx(1)
    assert curves["reward"] == pytest.approx(0.5 + 0.25 * curves["response_tokens"])


@pytest.mark.usefixtures("own_rewards")
def test_samples_without_a_verdict_are_masked(tmp_path: Path, loop: BackgroundLoop) -> None:
    engine = LearningEngine({"question": [boxed(1), boxed(0)]})
    source = collector(config(tmp_path), engine, loop, rewards=reward_set("only_right"))
    collected = source.collect(0, {})
    assert collected.rows == []  # a single scored sample is too few for a group
    table = pq.read_table(tmp_path / "rollouts" / "rollout-000000.parquet").to_pylist()
    verdicts = {(record["answer"], record["reward"], record["reason"]) for record in table}
    assert verdicts == {("1", 1.25, "correct"), ("0", None, "no_verdict")}
    curves = collected.metrics.reduced(Accelerator(cpu=True))
    assert curves["rewards/only_right/no_verdict"] == curves["samples/not_judged"] == 0.5


@pytest.mark.usefixtures("own_rewards")
def test_a_reward_that_always_raises_stops_the_run(tmp_path: Path, loop: BackgroundLoop) -> None:
    engine = LearningEngine({"question": [boxed(1), boxed(0)]})
    source = collector(config(tmp_path), engine, loop, rewards=reward_set("broken"))
    with pytest.raises(
        RewardConfigError, match="broken: KeyError: 'column', for all 8 episodes of rollout 0"
    ):
        source.collect(0, {})


def test_system_messages_are_part_of_the_prompt(tmp_path: Path, loop: BackgroundLoop) -> None:
    context = ({"role": "system", "content": "Be brief."},)
    problems = [replace(problem, context=context) for problem in PROBLEMS]
    engine = LearningEngine({"question": [boxed(1), boxed(0)]})
    rows = collector(config(tmp_path), engine, loop, problems=problems).collect(0, {}).rows
    text = engine.tokenizer.decode(rows[0].sample.prompt_ids)
    assert text.index("Be brief.") < text.index("question")


def test_format_sees_pending_blocks_and_open_fences(tmp_path: Path, loop: BackgroundLoop) -> None:
    pending = f"```python\nprint(1)\n```\nso \\boxed{{1}}{EOS}"
    open_fence = f"\\boxed{{1}}\n```python\nx = 1{EOS}"
    engine = LearningEngine({"result: 1": [boxed(1)], "question": [boxed(1), pending, open_fence, RUN]})
    rewards = RewardSet([RewardSpec(name="format")])
    settings = config(tmp_path, group_size=4, mini_batch_samples=None)
    metrics = collector(settings, engine, loop, rewards=rewards).collect(0, {}).metrics
    curves = metrics.reduced(Accelerator(cpu=True)).items()
    prefix = "rewards/format/"
    shares = {name.removeprefix(prefix): share for name, share in curves if name.startswith(prefix)}
    assert shares == {"kept": 0.5, "pending_blocks": 0.25, "open_fence": 0.25}
