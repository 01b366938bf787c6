"""Validation during training: episodes on a separate set of problems under the current weights."""

# ruff: noqa: ARG002 - transformers defines the arguments of a callback

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from service.deferral.policy import DeferralPolicy
from service.engines.base import EngineError, Tokenizer
from trainer.data.problems import Problem
from trainer.training.config import ConfigError, TrainConfig
from trainer.training.episodes import rollout, sample_seed
from trainer.training.rollouts import Means, RunParts
from trainer.training.run_files import ScoredSample, write_rollout
from trainer.training.run_info import EVAL_ACCURACY
from trainer.training.setup import TrainingSet, load_training_set


@dataclass(frozen=True, slots=True)
class ValidationSet:
    """The problems of ``[validation]``."""

    problems: tuple[Problem, ...]
    in_training: int
    """Number of them whose question is also a training problem."""

    def __str__(self) -> str:
        shared = f" ({self.in_training:,} of them are also training problems)" if self.in_training else ""
        return f"{len(self.problems):,} validation problems{shared}"


def load_validation_set(
    config: TrainConfig,
    tokenizer: Tokenizer,
    policy: DeferralPolicy,
    training: TrainingSet,
    tools: str = "",
) -> ValidationSet | None:
    """Load the validation problems, or return None if the recipe has none. See `load_training_set`.

    Raises:
        ConfigError: no problem is left.
        DataError: a source is unreadable or a row is invalid.
    """
    settings = config.validation
    if settings is None:
        return None
    source = config.model_copy(update={"data": settings.data, "decontaminate": ()})
    problems = load_training_set(source, tokenizer, policy, tools).problems[: settings.limit]
    if not problems:
        raise ConfigError("validation.data: no problem has an answer and a prompt that is short enough")
    questions = {problem.question for problem in training.problems}
    return ValidationSet(problems, sum(problem.question in questions for problem in problems))


class Validator:
    """Runs the validation episodes of a training run. Samples with the run's temperature and top-p.

    The seeds depend on the run's seed and the problem only, so all validations of a run use the same ones.

    Args:
        parts: of the run, whose recipe has ``[validation]``.
        problems: of all processes.
    """

    def __init__(self, parts: RunParts, problems: Sequence[Problem]) -> None:
        config, shard = parts.config, parts.shard
        if config.validation is None:
            raise ValueError("the run has no section [validation]")
        self._parts, self._config, self._shard = parts, config, shard
        self._validation = config.validation
        self._settings = replace(parts.settings, group_size=config.validation.samples)
        self._drawn = list(enumerate(problems))[shard.process :: shard.processes]

    def is_due(self, step: int) -> bool:
        """Return whether the weights after ``step`` are validated."""
        return step % self._validation.every == 0 or step == self._config.steps

    def validate(self, step: int, weights: Mapping[str, Tensor]) -> Means:
        """Run all episodes of this process under the weights after ``step``.

        Returns:
            Metrics of this process, named ``eval_...``.

        Raises:
            EngineError: the engine failed, or every episode was lost.
            WeightSyncError: a server did not accept the weights.
        """
        return self._parts.loop.run(self._validate(step, weights))

    async def _validate(self, step: int, weights: Mapping[str, Tensor]) -> Means:
        # The next rollout has the same number and the same weights.
        await self._parts.sink.push(step // self._config.updates_per_rollout, weights)
        groups = rollout(
            [self._parts.render(problem) for _, problem in self._drawn],
            self._parts.worker,
            self._settings,
            seeds=[
                [sample_seed(self._config.seed, "validation", number, place)
                 for place in range(self._validation.samples)]
                for number, _ in self._drawn
            ],
        )  # fmt: skip
        scored: list[ScoredSample] = []
        async with aclosing(groups):
            for _, problem in self._drawn:
                samples = await anext(groups)
                scored += await asyncio.gather(
                    *(self._parts.score(problem, sample, is_void=False) for sample in samples)
                )
        if self._drawn and not scored:
            raise EngineError(f"all validation episodes of step {step} were lost: see the warnings above")
        if self._config.save_rollouts:
            await asyncio.to_thread(write_rollout, self._path(step), step, scored)
        return _metrics(scored)

    def _path(self, step: int) -> Path:
        part = "" if self._shard.processes == 1 else f"-{self._shard.process}"
        return self._config.run_dir / "validation" / f"step-{step:06}{part}.parquet"


def _metrics(scored: Sequence[ScoredSample]) -> Means:
    """Return the metrics. A sample is correct if its first reward is at least 1, as in evaluation."""
    samples = [item.sample for item in scored]
    rewards = [item.reward for item in scored if item.reward is not None]
    first = [next(iter(item.parts.values())).value for item in scored if item.parts]
    judged = [value for value in first if value is not None]
    means = Means()
    means.add(EVAL_ACCURACY, sum(value >= 1 for value in judged), len(judged))
    means.add("eval_reward", sum(rewards), len(rewards))
    means.add("eval_not_judged", len(scored) - len(rewards), len(scored))
    means.add("eval_delay_rate", sum(s.delayed for s in samples), sum(s.executed_by_model for s in samples))
    means.add("eval_flushes", sum(len(s.tools) for s in samples), len(samples))
    means.add("eval_response_tokens", sum(sum(s.sampled) for s in samples), len(samples))
    return means


class ValidatedTrainer(Protocol):
    """The parts of `IHGRPOTrainer` that validation uses."""

    def current_weights(self) -> dict[str, Tensor]: ...
    def log_validation(self, means: Means) -> None: ...


class ValidationCallback(TrainerCallback):
    """Callback that validates before the first step and after each step that is due.

    A resumed run is not validated at the step that it resumes from: the checkpoint contains the result.
    """

    def __init__(
        self, trainer: ValidatedTrainer, validator: Validator, on_start: Callable[[int], None]
    ) -> None:
        self._trainer, self._validator, self._on_start = trainer, validator, on_start

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self._validate(0, control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._validator.is_due(state.global_step):
            self._validate(state.global_step, control)

    def _validate(self, step: int, control: TrainerControl) -> None:
        should_log = control.should_log
        self._on_start(step)
        self._trainer.log_validation(self._validator.validate(step, self._trainer.current_weights()))
        control.should_log = should_log  # logging clears it; the step itself is still to be logged
