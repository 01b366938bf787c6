from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from service.deferral.policy import DeferralPolicy
from service.engines.base import EngineError
from tests.support.char_tokenizer import CharTokenizer
from tests.support.reply_engine import ReplyEngine
from tests.support.scripted import EOS, ScriptedSandbox, printed
from trainer.data.problems import Problem
from trainer.rewards import FinishedEpisode
from trainer.rewards.registry import RewardSet, RewardSpec
from trainer.training.config import TrainConfig
from trainer.training.episodes import EpisodeLostError, LocalRolloutWorker, Sample
from trainer.training.generation import rollout_settings
from trainer.training.rollouts import BackgroundLoop, Means, RunParts, Shard
from trainer.training.run_files import read_rollout
from trainer.training.setup import TrainingSet, load_training_set
from trainer.training.validation import ValidationCallback, Validator, load_validation_set
from trainer.weight_sync.sinks import EngineSink

PROBLEMS = [Problem(f"p:{i}", f"question {i}", str(i)) for i in range(4)]


class AnswerEngine(ReplyEngine):
    """An engine that answers 0 or 1, and records its weights."""

    def __init__(self) -> None:
        self.loaded: list[Mapping[str, Tensor]] = []
        super().__init__(lambda context: f"\\boxed{{{int('question 1' in context)}}}{EOS}")

    async def load_weights(self, source: Mapping[str, Tensor], *, version: int = 0) -> None:
        self.loaded.append(source)


async def is_equal(episode: FinishedEpisode, row: Mapping[str, Any]) -> float:
    return float(episode.answer == row["answer"])


async def always_half(episode: FinishedEpisode, row: Mapping[str, Any]) -> float:
    return 0.5


REWARDS = [
    RewardSpec(name=f"{__name__}:is_equal"),
    RewardSpec(name=f"{__name__}:always_half", weight=2.0),
]


@pytest.fixture
def loop() -> Iterator[BackgroundLoop]:
    with BackgroundLoop() as running:
        yield running


def config(run_dir: Path, **validation: object) -> TrainConfig:
    values = {"model": "m", "data": ["d"], "run_dir": run_dir, "steps": 25}
    return TrainConfig.model_validate({**values, "validation": {"data": ["v"], "samples": 2, **validation}})


@pytest.fixture(autouse=True)
def own_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests are not importable by name: look the functions up here."""
    monkeypatch.setattr("trainer.rewards.registry.import_object", lambda name: globals()[name.split(":")[1]])


def validator(settings: TrainConfig, loop: BackgroundLoop, shard: Shard, worker: Any = None) -> Validator:
    engine, episodes = AnswerEngine(), rollout_settings(settings, DeferralPolicy())
    sandbox = ScriptedSandbox(lambda blocks: printed("1"))
    parts = RunParts(
        settings,
        episodes,
        engine.tokenizer,
        worker or LocalRolloutWorker(engine, sandbox, episodes),
        EngineSink(engine),
        RewardSet(REWARDS),
        loop,
        shard,
    )
    return Validator(parts, PROBLEMS)


def test_accuracy_counts_first_reward_only(tmp_path: Path, loop: BackgroundLoop) -> None:
    means = validator(config(tmp_path), loop, Shard()).validate(10, {}).reduced(Accelerator(cpu=True))
    assert means["eval_accuracy"] == 0.5  # questions 0 and 1 of 4
    assert means["eval_reward"] == 1.5
    assert means["eval_not_judged"] == 0


def test_episodes_are_saved_and_repeat_with_same_seeds(tmp_path: Path, loop: BackgroundLoop) -> None:
    found = validator(config(tmp_path), loop, Shard())
    for step in (0, 10):
        found.validate(step, {})
    first, second = (read_rollout(tmp_path / "validation" / f"step-{step:06}.parquet") for step in (0, 10))
    assert [record.problem_id for record in first] == ["p:0", "p:0", "p:1", "p:1", "p:2", "p:2", "p:3", "p:3"]
    assert [record.text for record in first] == [record.text for record in second]
    assert [record.advantage for record in first] == [None] * 8


def test_processes_split_the_problems(tmp_path: Path, loop: BackgroundLoop) -> None:
    for process in (0, 1):
        validator(config(tmp_path), loop, Shard(process, 2)).validate(10, {})
    parts = [
        {record.problem_id for record in read_rollout(path)}
        for path in sorted((tmp_path / "validation").iterdir())
    ]
    assert parts == [{"p:0", "p:2"}, {"p:1", "p:3"}]


def test_is_due_at_multiples_and_at_the_end(tmp_path: Path, loop: BackgroundLoop) -> None:
    found = validator(config(tmp_path), loop, Shard())
    assert [step for step in range(1, 26) if found.is_due(step)] == [10, 20, 25]


def test_lost_episodes(tmp_path: Path, loop: BackgroundLoop) -> None:
    class Lost:
        async def run_episode(self, *args: object, **kwargs: object) -> Sample:
            raise EpisodeLostError("host")

    with pytest.raises(EngineError, match="all validation episodes of step 10 were lost"):
        validator(config(tmp_path), loop, Shard(), Lost()).validate(10, {})


class RecordingTrainer:
    def __init__(self) -> None:
        self.logged: list[Means] = []

    def current_weights(self) -> dict[str, Tensor]:
        return {}

    def log_validation(self, means: Means) -> None:
        self.logged.append(means)


def test_callback_validates_start_and_due_steps_only(tmp_path: Path, loop: BackgroundLoop) -> None:
    trainer, started = RecordingTrainer(), list[int]()
    callback = ValidationCallback(trainer, validator(config(tmp_path), loop, Shard()), started.append)
    args, control = TrainingArguments(output_dir="unused", report_to=[]), TrainerControl(should_log=True)
    callback.on_train_begin(args, TrainerState(global_step=0), control)
    for step in range(1, 13):
        callback.on_step_end(args, TrainerState(global_step=step), control)
    assert started == [0, 10]
    assert len(trainer.logged) == 2
    assert control.should_log  # the step itself is still to be logged


def test_resumed_run_is_not_validated_again(tmp_path: Path, loop: BackgroundLoop) -> None:
    started = list[int]()
    callback = ValidationCallback(
        RecordingTrainer(), validator(config(tmp_path), loop, Shard()), started.append
    )
    args = TrainingArguments(output_dir="unused", report_to=[])
    callback.on_train_begin(args, TrainerState(global_step=10), TrainerControl())
    assert started == []


def test_validation_set_is_limited_and_reports_training_problems(tmp_path: Path) -> None:
    def problems(name: str, *questions: str) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"question": q, "answer": "2"}) + "\n" for q in questions))
        return str(path)

    training = problems("train.jsonl", "1 + 1?", "4 / 2?")
    settings = config(tmp_path, data=problems("held-out.jsonl", "1 + 1?", "2 + 0?", "8 / 4?"), limit=2)
    settings = settings.model_copy(update={"data": (training,)})
    policy = DeferralPolicy(prompt="brief-v1", max_episode_tokens=300)
    loaded: TrainingSet = load_training_set(settings, CharTokenizer(), policy)
    held_out = load_validation_set(settings, CharTokenizer(), policy, loaded)
    assert held_out is not None
    assert [problem.question for problem in held_out.problems] == ["1 + 1?", "2 + 0?"]
    assert str(held_out) == "2 validation problems (1 of them are also training problems)"
    without = settings.model_copy(update={"validation": None})
    assert load_validation_set(without, CharTokenizer(), policy, loaded) is None
