"""Evaluation of a quickstart checkpoint with the serving loop, the embedded engine and a real sandbox.

`GarbageSandbox` replaces outputs with random ones: a model that uses its tool then solves nothing.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from service.deferral.policy import DeferralPolicy
from service.engines.base import Sampling
from service.engines.settings import TransformersSettings
from service.engines.transformers.engine import TransformersEngine
from service.episode.runner import EpisodeRunner
from service.sandbox.base import ExecutionResult, OnOutput, Sandbox, Session, SessionLimits
from service.tools.base import ToolHost
from trainer.quickstart.ordinary import HONEST_REPLY
from trainer.quickstart.problems import PracticeProblem
from trainer.training.episodes import LocalRolloutWorker, RolloutSettings, Sample, rollout, sample_seed


@dataclass(frozen=True, slots=True)
class ProblemResult:
    """The sample for a problem."""

    problem: PracticeProblem
    sample: Sample

    @property
    def is_correct(self) -> bool:
        """True if the episode ended with the boxed answer, written as the plain number."""
        return not self.sample.outcome.is_void and self.sample.answer == self.problem.boxed


@dataclass(frozen=True, slots=True)
class Question:
    """A question in free wording, with its expected boxed answer."""

    text: str
    answer: str | None = None
    """None for a text that is not arithmetic: the expected reply is `HONEST_REPLY`."""
    earlier: tuple[str, ...] = ()
    """Earlier questions of the same conversation."""


@dataclass(frozen=True, slots=True)
class QuestionResult:
    """The sample for a question."""

    question: Question
    sample: Sample

    @property
    def is_correct(self) -> bool:
        """True if the boxed answer is correct; without one, if the reply is honest and no code ran."""
        if self.question.answer is None:
            return self.sample.text.removesuffix("<|im_end|>") == HONEST_REPLY and not self.sample.tools
        return self.sample.answer == self.question.answer


def load_questions(path: Path) -> list[Question]:
    """Load questions from a JSON Lines file with the field ``question``, and optionally ``answer`` and
    ``earlier``.

    Raises:
        OSError: the file is unreadable.
        ValueError: a row is not such an object.
    """
    questions = []
    # Lines of bytes: a string in JSON may contain characters at which ``str.splitlines`` splits.
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
            questions.append(Question(row["question"], row.get("answer"), tuple(row.get("earlier", ()))))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: not a question: {error!r}") from None
    return questions


class GarbageSession:
    """Session that replaces every digit and truth value of the output by a different one."""

    def __init__(self, inner: Session, rng: random.Random) -> None:
        self._inner = inner
        self._rng = rng

    async def prepare(self) -> None:
        await self._inner.prepare()

    async def invoke(self, code: str) -> None:
        await self._inner.invoke(code)

    async def flush(self, on_output: OnOutput | None = None) -> ExecutionResult:
        result = await self._inner.flush(on_output)
        return replace(result, stdout=re.sub(r"\d|True|False", self._different, result.stdout))

    def _different(self, match: re.Match[str]) -> str:
        choices = ("True", "False") if match[0].isalpha() else tuple("0123456789")
        return self._rng.choice([choice for choice in choices if choice != match[0]])

    async def suspend(self) -> None:
        await self._inner.suspend()

    async def resume(self) -> None:
        await self._inner.resume()

    async def close(self) -> None:
        await self._inner.close()


class GarbageSandbox:
    """Sandbox with the sessions of ``inner`` wrapped in `GarbageSession`."""

    def __init__(self, inner: Sandbox, seed: int = 0) -> None:
        self._inner = inner
        self._rng = random.Random(seed)

    async def start(self) -> None:
        await self._inner.start()

    def session(self, limits: SessionLimits, tools: ToolHost | None = None) -> Session:
        return GarbageSession(self._inner.session(limits, tools), self._rng)

    async def ready(self) -> bool:
        return await self._inner.ready()

    async def stop(self) -> None:
        await self._inner.stop()


async def evaluate(
    model: Path,
    problems: Sequence[PracticeProblem],
    sandbox: Sandbox,
    *,
    policy: DeferralPolicy | None = None,
    temperature: float,
    seed: int = 0,
    concurrency: int = 8,
    on_result: Callable[[ProblemResult], None] = lambda _: None,
) -> list[ProblemResult]:
    """Run one episode per problem.

    Args:
        model: a checkpoint with its ``deferral.json``.
        problems: the problems, in any order.
        sandbox: not started; started and stopped here.
        policy: replaces the checkpoint's policy.
        temperature: sampling temperature; 0 is greedy.
        seed: seed of the samples.
        concurrency: number of concurrent episodes, each with its own container.
        on_result: called with each result, in the order of ``problems``.

    Raises:
        EngineError: the checkpoint cannot be loaded.
        SandboxError: the sandbox cannot be started.
    """
    results: list[ProblemResult] = []
    async with _started(model, sandbox, policy, temperature, concurrency) as (backend, worker, settings):
        prompts = [
            backend.render([{"role": "user", "content": problem.text}], deferral=True) for problem in problems
        ]
        seeds = [[sample_seed(seed, index)] for index in range(len(problems))]
        async for (sample,) in rollout(prompts, worker, settings, seeds=seeds):
            results.append(ProblemResult(problems[len(results)], sample))
            on_result(results[-1])
    return results


async def ask(
    model: Path,
    questions: Sequence[Question],
    sandbox: Sandbox,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    concurrency: int = 8,
    on_result: Callable[[QuestionResult], None] = lambda _: None,
) -> list[QuestionResult]:
    """Ask every question once, after the earlier questions of its conversation and the model's replies to
    them.

    Arguments and exceptions are as in `evaluate`.
    """
    async with _started(model, sandbox, None, temperature, concurrency) as (backend, worker, _):
        slots = asyncio.Semaphore(concurrency)

        async def reply(index: int, question: Question) -> QuestionResult:
            messages: list[dict[str, object]] = []
            async with slots:
                for turn, text in enumerate((*question.earlier, question.text)):
                    messages.append({"role": "user", "content": text})
                    prompt = backend.render(messages, deferral=True)
                    sample = await worker.run_episode(
                        prompt, seed=sample_seed(seed, index, turn), episode_id=f"q{index}-{turn}"
                    )
                    messages.append({"role": "assistant", "content": sample.text.removesuffix("<|im_end|>")})
            result = QuestionResult(question, sample)
            on_result(result)
            return result

        return list(await asyncio.gather(*(reply(i, question) for i, question in enumerate(questions))))


@asynccontextmanager
async def _started(
    model: Path, sandbox: Sandbox, policy: DeferralPolicy | None, temperature: float, concurrency: int
) -> AsyncGenerator[tuple[EpisodeRunner, LocalRolloutWorker, RolloutSettings]]:
    """Yield a runner, a worker and rollout settings on a started engine and sandbox."""
    engine = TransformersEngine(TransformersSettings(model=str(model), max_slots=concurrency))
    sampling = Sampling(temperature=temperature)
    policy = policy or DeferralPolicy.load(model)
    settings = RolloutSettings(policy=policy, sampling=sampling, group_size=1, max_concurrent=concurrency)
    await engine.start()
    try:
        await sandbox.start()
        yield (
            EpisodeRunner(engine, sandbox, policy, sampling),
            LocalRolloutWorker(engine, sandbox, settings),
            settings,
        )
    finally:
        await sandbox.stop()
        await engine.stop()


def print_question_results(results: Sequence[QuestionResult], console: Console, *, failures: int = 0) -> None:
    """Print the number of correct results, the delay rate, and the text of the first ``failures``
    failures."""
    correct = sum(result.is_correct for result in results)
    executed = sum(result.sample.executed for result in results)
    delayed = sum(result.sample.delayed for result in results)
    console.print(
        f"{correct} of {len(results)} correct; {delayed} of {executed} executed blocks were delayed"
    )
    for result in [result for result in results if not result.is_correct][:failures]:
        console.rule(f"expected: {result.question.answer or 'the honest reply'}")
        turns = (*result.question.earlier, result.question.text)
        console.print("\n".join([*turns, result.sample.text]), markup=False, highlight=False)


def print_problem_results(results: Sequence[ProblemResult], console: Console, *, failures: int = 0) -> None:
    """Print a table by family, the delay rate, and the text of the first ``failures`` failures."""
    families: dict[str, list[ProblemResult]] = defaultdict(list)
    for result in results:
        families[result.problem.family].append(result)
    table = Table("family", "solved", "of", "share")
    for name, group in [*sorted(families.items()), ("all", list(results))]:
        solved = sum(result.is_correct for result in group)
        table.add_row(name, str(solved), str(len(group)), f"{solved / len(group):.1%}")
    console.print(table)
    executed = sum(result.sample.executed for result in results)
    delayed = sum(result.sample.delayed for result in results)
    console.print(f"delay rate {delayed / max(executed, 1):.2f} ({delayed} of {executed} executed blocks)")
    for result in [result for result in results if not result.is_correct][:failures]:
        console.rule(
            f"{result.problem.family}: {result.sample.outcome}, the answer is {result.problem.answer}"
        )
        console.print(f"{result.problem.text}\n{result.sample.text}", markup=False, highlight=False)
