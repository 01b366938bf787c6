"""Held-out problems through the served loop: the embedded engine, real containers, the boxed answer.

With garbage in place of what the sandbox says, a model that uses its tool solves nothing.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from service.backend import Backend
from service.deferral.policy import DeferralPolicy
from service.engines.base import Sampling
from service.engines.settings import EngineSettings
from service.engines.transformers import TransformersEngine
from service.sandbox.base import ExecutionResult, Sandbox, Session, SessionLimits
from trainer.quickstart.problems import Problem
from trainer.rollout import LocalPlayer, RolloutSettings, Sample, rollout, sample_seed


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one problem."""

    problem: Problem
    sample: Sample

    @property
    def solved(self) -> bool:
        """The episode ended with the answer in a box, written as the plain number."""
        return not self.sample.outcome.is_void and self.sample.answer == str(self.problem.answer)


class GarbageSession:
    """A session whose output has every digit replaced by a random one: the same shape, no information."""

    def __init__(self, inner: Session, rng: random.Random) -> None:
        self._inner = inner
        self._rng = rng

    async def prepare(self) -> None:
        await self._inner.prepare()

    async def invoke(self, code: str) -> None:
        await self._inner.invoke(code)

    async def flush(self) -> ExecutionResult:
        result = await self._inner.flush()
        return replace(result, stdout=re.sub(r"\d", lambda _: self._rng.choice("0123456789"), result.stdout))

    async def close(self) -> None:
        await self._inner.close()


class GarbageSandbox:
    """``inner``, but its sessions lie."""

    def __init__(self, inner: Sandbox, seed: int = 0) -> None:
        self._inner = inner
        self._rng = random.Random(seed)  # noqa: S311

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
    engine = TransformersEngine(EngineSettings(model=str(model), max_slots=concurrency))
    sampling = Sampling(temperature=temperature)
    policy = policy or DeferralPolicy.load(model)
    backend = Backend(engine, sandbox, policy, sampling)
    prompts = [
        backend.render([{"role": "user", "content": problem.text}], deferral=True) for problem in problems
    ]
    settings = RolloutSettings(policy=policy, sampling=sampling, group_size=1, max_concurrent=concurrency)
    seeds = [[sample_seed(seed, index)] for index in range(len(problems))]
    verdicts: list[Verdict] = []
    await engine.start()
    try:
        await sandbox.start()
        player = LocalPlayer(engine, sandbox, settings)
        async for (sample,) in rollout(prompts, player, settings, seeds=seeds):
            verdicts.append(Verdict(problems[len(verdicts)], sample))
            listen(verdicts[-1])
    finally:
        await sandbox.stop()
        await engine.stop()
    return verdicts


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
