"""Held-out problems through the served loop: the embedded engine, real containers, the boxed answer.

With garbage in place of what the sandbox says, a model that uses its tool solves nothing.
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
from service.sandbox.base import ExecutionResult, Sandbox, Session, SessionLimits
from trainer.quickstart.ordinary import HONEST_REPLY
from trainer.quickstart.problems import Problem
from trainer.training.episodes import LocalRolloutWorker, RolloutSettings, Sample, rollout, sample_seed


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one problem."""

    problem: Problem
    sample: Sample

    @property
    def solved(self) -> bool:
        """The episode ended with the answer in a box, written as the plain number."""
        return not self.sample.outcome.is_void and self.sample.answer == self.problem.boxed


@dataclass(frozen=True, slots=True)
class Question:
    """A question as a person asks it, and the answer to find in the box."""

    text: str
    answer: str | None = None
    """None for an ordinary text, which gets the honest reply."""
    earlier: tuple[str, ...] = ()
    """Questions before it in the same conversation."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply to a question."""

    question: Question
    sample: Sample

    @property
    def right(self) -> bool:
        """The boxed answer is right; for an ordinary text: the reply is the honest one and no code ran."""
        if self.question.answer is None:
            return self.sample.text.removesuffix("<|im_end|>") == HONEST_REPLY and not self.sample.tools
        return self.sample.answer == self.question.answer


def load_questions(path: Path) -> list[Question]:
    """Questions of a JSON Lines file with ``question`` and, optionally, ``answer`` and ``earlier`` in a row.

    Raises:
        OSError: the file can't be read.
        ValueError: a row is not such an object.
    """
    questions = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            questions.append(Question(row["question"], row.get("answer"), tuple(row.get("earlier", ()))))
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}, line {number}: not a question: {error!r}") from None
    return questions


class GarbageSession:
    """A session whose output is wrong in every digit and truth value: the same shape, no information."""

    def __init__(self, inner: Session, rng: random.Random) -> None:
        self._inner = inner
        self._rng = rng

    async def prepare(self) -> None:
        await self._inner.prepare()

    async def invoke(self, code: str) -> None:
        await self._inner.invoke(code)

    async def flush(self) -> ExecutionResult:
        result = await self._inner.flush()
        return replace(result, stdout=re.sub(r"\d|True|False", self._other, result.stdout))

    def _other(self, match: re.Match[str]) -> str:
        choices = ("True", "False") if match[0].isalpha() else tuple("0123456789")
        return self._rng.choice([choice for choice in choices if choice != match[0]])

    async def close(self) -> None:
        await self._inner.close()


class GarbageSandbox:
    """``inner``, but its sessions lie."""

    def __init__(self, inner: Sandbox, seed: int = 0) -> None:
        self._inner = inner
        self._rng = random.Random(seed)

    async def start(self) -> None:
        await self._inner.start()

    def session(self, limits: SessionLimits) -> Session:
        return GarbageSession(self._inner.session(limits), self._rng)

    async def ready(self) -> bool:
        return await self._inner.ready()

    async def stop(self) -> None:
        await self._inner.stop()


async def evaluate(
    model: Path,
    problems: Sequence[Problem],
    sandbox: Sandbox,
    *,
    policy: DeferralPolicy | None = None,
    temperature: float,
    seed: int = 0,
    concurrency: int = 8,
    listen: Callable[[Verdict], None] = lambda _: None,
) -> list[Verdict]:
    """Play every problem once.

    Args:
        model: A checkpoint with its ``deferral.json``.
        policy: In place of the checkpoint's own.
        sandbox: Not started yet; started and stopped here.
        concurrency: Episodes, and so containers, at once.
        listen: Told of each verdict as it comes.

    Raises:
        EngineError: the checkpoint can't be loaded.
        SandboxError: the sandbox can't be started.
    """
    verdicts: list[Verdict] = []
    async with _playing(model, sandbox, policy, temperature, concurrency) as (backend, worker, settings):
        prompts = [
            backend.render([{"role": "user", "content": problem.text}], deferral=True) for problem in problems
        ]
        seeds = [[sample_seed(seed, index)] for index in range(len(problems))]
        async for (sample,) in rollout(prompts, worker, settings, seeds=seeds):
            verdicts.append(Verdict(problems[len(verdicts)], sample))
            listen(verdicts[-1])
    return verdicts


async def ask(
    model: Path,
    questions: Sequence[Question],
    sandbox: Sandbox,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    concurrency: int = 8,
    listen: Callable[[Reply], None] = lambda _: None,
) -> list[Reply]:
    """Ask every question once; earlier ones of a conversation first, with the model's own replies.

    Args and errors are those of `evaluate`.
    """
    async with _playing(model, sandbox, None, temperature, concurrency) as (backend, worker, _):
        slots = asyncio.Semaphore(concurrency)

        async def reply(index: int, question: Question) -> Reply:
            messages: list[dict[str, object]] = []
            async with slots:
                for turn, text in enumerate((*question.earlier, question.text)):
                    messages.append({"role": "user", "content": text})
                    prompt = backend.render(messages, deferral=True)
                    sample = await worker.run_episode(
                        prompt, seed=sample_seed(seed, index, turn), episode_id=f"q{index}-{turn}"
                    )
                    messages.append({"role": "assistant", "content": sample.text.removesuffix("<|im_end|>")})
            made = Reply(question, sample)
            listen(made)
            return made

        return list(await asyncio.gather(*(reply(i, question) for i, question in enumerate(questions))))


@asynccontextmanager
async def _playing(
    model: Path, sandbox: Sandbox, policy: DeferralPolicy | None, temperature: float, concurrency: int
) -> AsyncGenerator[tuple[EpisodeRunner, LocalRolloutWorker, RolloutSettings]]:
    """A started engine and sandbox."""
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


def print_replies(replies: Sequence[Reply], console: Console, *, failures: int = 0) -> None:
    """How many are right, the delay rate, and the text of the first ``failures`` failures."""
    right = sum(reply.right for reply in replies)
    executed = sum(reply.sample.executed for reply in replies)
    delayed = sum(reply.sample.delayed for reply in replies)
    console.print(f"{right} of {len(replies)} right; {delayed} of {executed} executed blocks were delayed")
    for reply in [reply for reply in replies if not reply.right][:failures]:
        console.rule(f"expected: {reply.question.answer or 'the honest reply'}")
        turns = (*reply.question.earlier, reply.question.text)
        console.print("\n".join([*turns, reply.sample.text]), markup=False, highlight=False)


def print_verdicts(verdicts: Sequence[Verdict], console: Console, *, failures: int = 0) -> None:
    """A table by family, the delay rate, and the text of the first ``failures`` failures."""
    families: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        families[verdict.problem.family].append(verdict)
    table = Table("family", "solved", "of", "share")
    for name, group in [*sorted(families.items()), ("all", list(verdicts))]:
        solved = sum(verdict.solved for verdict in group)
        table.add_row(name, str(solved), str(len(group)), f"{solved / len(group):.1%}")
    console.print(table)
    executed = sum(verdict.sample.executed for verdict in verdicts)
    delayed = sum(verdict.sample.delayed for verdict in verdicts)
    console.print(f"delay rate {delayed / max(executed, 1):.2f} ({delayed} of {executed} executed blocks)")
    for verdict in [verdict for verdict in verdicts if not verdict.solved][:failures]:
        console.rule(
            f"{verdict.problem.family}: {verdict.sample.outcome}, the answer is {verdict.problem.answer}"
        )
        console.print(f"{verdict.problem.text}\n{verdict.sample.text}", markup=False, highlight=False)
