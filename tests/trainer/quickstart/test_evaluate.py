from __future__ import annotations

import asyncio
import io
from pathlib import Path
from random import Random

import pytest
from rich.console import Console

from service.deferral.episode import Outcome
from service.sandbox.base import ExecutionResult, SessionLimits
from tests.support.scripted import ScriptedSandbox, printed
from trainer.quickstart.config import WarmStartConfig
from trainer.quickstart.evaluate import GarbageSandbox, Verdict, evaluate, print_verdicts
from trainer.quickstart.problems import FAMILIES
from trainer.quickstart.traces import held_out_problems
from trainer.quickstart.warm_start import warm_start
from trainer.rollout import Sample


def verdict(answer: str | None, outcome: Outcome = Outcome.ANSWER) -> Verdict:
    sample = Sample(
        prompt_ids=(),
        ids=(),
        sampled=(),
        logprobs=(),
        text="the text",
        outcome=outcome,
        answer=answer,
        tools=(),
        seconds=0.0,
        seed=0,
    )
    return Verdict(FAMILIES["product"](Random(0)), sample)


def test_solved_means_the_right_number_in_a_box() -> None:
    right = str(verdict(None).problem.answer)
    assert verdict(right).solved
    assert not verdict(right + "0").solved
    assert not verdict(None, Outcome.VOID).solved
    assert not verdict(right, Outcome.LENGTH).solved


async def test_garbage_keeps_the_shape_and_nothing_else() -> None:
    error = ExecutionResult("", "ValueError: 12", "error", wall_seconds=0, waited_seconds=0)
    results = {"a": printed("x = -1234567890\n"), "b": error}
    sandbox = GarbageSandbox(ScriptedSandbox(lambda blocks: results[blocks[0]]), seed=1)
    await sandbox.start()
    assert await sandbox.ready()
    session = sandbox.session(SessionLimits())
    await session.invoke("a")
    stdout = (await session.flush()).stdout
    assert stdout != "x = -1234567890\n"
    assert len(stdout) == len("x = -1234567890\n")
    assert stdout.startswith("x = -")
    await session.invoke("b")
    assert await session.flush() == error
    await session.close()
    await sandbox.stop()


def test_evaluation_plays_each_problem_in_order(tiny: WarmStartConfig, tmp_path: Path) -> None:
    warm_start(tiny.model_copy(update={"steps": 1}), tmp_path, lambda _: None)
    problems = list(held_out_problems(0, 3))
    sandbox = ScriptedSandbox(lambda _: printed("1"))
    heard: list[Verdict] = []
    verdicts = asyncio.run(
        evaluate(tmp_path, problems, sandbox, temperature=1.0, concurrency=2, listen=heard.append)
    )
    assert [item.problem for item in verdicts] == problems
    assert heard == verdicts
    assert not any(item.solved for item in verdicts), "an untrained model solves nothing"


@pytest.mark.parametrize("failures", [0, 1])
def test_table(failures: int) -> None:
    right = verdict(str(verdict(None).problem.answer))
    out = io.StringIO()
    print_verdicts([right, verdict("7")], Console(file=out, width=100), failures=failures)
    assert "50.0%" in out.getvalue()
    assert ("the text" in out.getvalue()) == bool(failures)
