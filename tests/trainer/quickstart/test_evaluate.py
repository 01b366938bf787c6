from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from rich.console import Console

from service.deferral.episode import Outcome
from service.sandbox.base import ExecutionResult, SessionLimits
from tests.support.scripted import ScriptedSandbox, printed
from trainer.quickstart.config import WarmStartConfig
from trainer.quickstart.evaluate import (
    GarbageSandbox,
    ProblemResult,
    Question,
    QuestionResult,
    ask,
    evaluate,
    load_questions,
    print_problem_results,
    print_question_results,
)
from trainer.quickstart.ordinary import HONEST_REPLY
from trainer.quickstart.problems import FAMILIES
from trainer.quickstart.traces import held_out_problems
from trainer.quickstart.warm_start import warm_start
from trainer.training.episodes import Sample


def problem_result(answer: str | None, outcome: Outcome = Outcome.ANSWER) -> ProblemResult:
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
    return ProblemResult(FAMILIES["product"](Random(0)), sample)


def test_correct_means_correct_number_in_box() -> None:
    right = str(problem_result(None).problem.answer)
    assert problem_result(right).is_correct
    assert not problem_result(right + "0").is_correct
    assert not problem_result(None, Outcome.VOID).is_correct
    assert not problem_result(right, Outcome.LENGTH).is_correct


async def test_garbage_keeps_only_the_shape() -> None:
    error = ExecutionResult("", "ValueError: 12", "error", wall_seconds=0, waited_seconds=0)
    results = {"a": printed("x = -1234567890\n"), "b": error, "c": printed("True\n")}
    sandbox = GarbageSandbox(ScriptedSandbox(lambda blocks: results[blocks[0]]), seed=1)
    await sandbox.start()
    assert await sandbox.ready()
    session = sandbox.session(SessionLimits())
    await session.invoke("a")
    stdout = (await session.flush()).stdout
    assert stdout != "x = -1234567890\n"
    assert len(stdout) == len("x = -1234567890\n")
    assert stdout.startswith("x = -")
    assert all(a != b for a, b in zip(stdout[5:-1], "1234567890", strict=True))
    await session.invoke("b")
    assert await session.flush() == error
    await session.invoke("c")
    assert (await session.flush()).stdout == "False\n"
    await session.close()
    await sandbox.stop()


def test_evaluation_runs_problems_in_order(tiny: WarmStartConfig, tmp_path: Path) -> None:
    warm_start(tiny.model_copy(update={"steps": 1}), tmp_path, lambda _: None)
    problems = list(held_out_problems(0, 3))
    sandbox = ScriptedSandbox(lambda _: printed("1"))
    seen: list[ProblemResult] = []
    results = asyncio.run(
        evaluate(tmp_path, problems, sandbox, temperature=1.0, concurrency=2, on_result=seen.append)
    )
    assert [item.problem for item in results] == problems
    assert seen == results
    assert not any(item.is_correct for item in results), "an untrained model solves nothing"


@pytest.mark.parametrize("failures", [0, 1])
def test_prints_table(failures: int) -> None:
    right = problem_result(str(problem_result(None).problem.answer))
    out = io.StringIO()
    print_problem_results([right, problem_result("7")], Console(file=out, width=100), failures=failures)
    assert "50.0%" in out.getvalue()
    assert ("the text" in out.getvalue()) == bool(failures)


def test_reply_is_correct_with_answer_or_honest_sentence() -> None:
    boxed = problem_result("5").sample
    honest = replace(boxed, text=HONEST_REPLY + "<|im_end|>", answer=None, outcome=Outcome.VOID)
    assert QuestionResult(Question("2+3", "5"), boxed).is_correct
    assert not QuestionResult(Question("2+4", "6"), boxed).is_correct
    assert not QuestionResult(Question("2+3", "5"), honest).is_correct
    assert QuestionResult(Question("hi"), honest).is_correct
    assert not QuestionResult(Question("hi"), boxed).is_correct


def test_loads_questions_from_file(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "2+3", "answer": "5", "earlier": ["1+1"]}\n{"question": "hi"}\n')
    assert load_questions(path) == [Question("2+3", "5", ("1+1",)), Question("hi")]
    path.write_text('{"answer": "5"}\n')
    with pytest.raises(ValueError, match="line 1: not a question"):
        load_questions(path)


def test_asks_conversation_turn_by_turn(tiny: WarmStartConfig, tmp_path: Path) -> None:
    warm_start(tiny.model_copy(update={"steps": 1}), tmp_path, lambda _: None)
    questions = [Question("2+3", "5"), Question("add 1", "6", ("2+3",))]
    seen: list[QuestionResult] = []
    sandbox = ScriptedSandbox(lambda _: printed("1"))
    replies = asyncio.run(ask(tmp_path, questions, sandbox, concurrency=2, on_result=seen.append))
    assert [reply.question for reply in replies] == questions
    assert sorted(seen, key=str) == sorted(replies, key=str)
    first, second = (reply.sample.prompt_ids for reply in replies)
    assert len(second) > len(first)
    out = io.StringIO()
    print_question_results(replies, Console(file=out, width=100), failures=2)
    assert "0 of 2 correct" in out.getvalue()
    assert "add 1" in out.getvalue()
