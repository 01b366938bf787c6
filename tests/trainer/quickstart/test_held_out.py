"""The shipped checkpoint on questions in unseen wordings, with real containers."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from random import Random

import pytest

from service.engines.checkpoint import quickstart
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.docker.settings import DockerSandboxSettings
from trainer.quickstart.draws import training_problem
from trainer.quickstart.evaluate import GarbageSandbox, QuestionResult, ask, load_questions
from trainer.quickstart.traces import TraceMix

DATA = Path(__file__).parents[2] / "data" / "quickstart"
WEIGHTS_LIMIT_BYTES = 30_000_000


def masked(text: str) -> str:
    """Return the wording of ``text``: without numbers, letter case and end marks."""
    return re.sub(r"\d[\d,. _']*", "0", text.lower()).strip(" .?!")


def replies(name: str, settings: DockerSandboxSettings, *, garbage: bool = False) -> list[QuestionResult]:
    sandbox = DockerSandbox(settings)
    questions = load_questions(DATA / f"{name}.jsonl")
    return asyncio.run(
        ask(quickstart(), questions, GarbageSandbox(sandbox) if garbage else sandbox, concurrency=4)
    )


def wrong(made: list[QuestionResult]) -> str:
    return "\n".join(f"{reply.question}: {reply.sample.text}" for reply in made if not reply.is_correct)


def test_held_out_wordings_are_not_in_training() -> None:
    style = TraceMix(natural_share=0.7, ordinary_share=0.3)
    taught = {
        masked(training_problem(Random(seed), style, "<tool_call>", held_out=False).text)
        for seed in range(20_000)
    }
    questions = load_questions(DATA / "wordings.jsonl")
    assert len({question.text for question in questions}) == 100
    assert [question.text for question in questions if masked(question.text) in taught] == []


def test_checkpoint_is_small() -> None:
    assert sum(file.stat().st_size for file in quickstart().iterdir()) < WEIGHTS_LIMIT_BYTES


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_questions_in_unseen_wordings(docker_sandbox_settings: DockerSandboxSettings) -> None:
    made = replies("wordings", docker_sandbox_settings)
    assert sum(reply.is_correct for reply in made) >= 90, wrong(made)


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_answers_come_from_execution(docker_sandbox_settings: DockerSandboxSettings) -> None:
    assert sum(reply.is_correct for reply in replies("wordings", docker_sandbox_settings, garbage=True)) < 5


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_common_question_forms(docker_sandbox_settings: DockerSandboxSettings) -> None:
    made = replies("forms", docker_sandbox_settings)
    assert sum(reply.is_correct for reply in made) >= 18, wrong(made)


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_ordinary_sentences_get_the_honest_reply(docker_sandbox_settings: DockerSandboxSettings) -> None:
    made = replies("ordinary", docker_sandbox_settings)
    assert len(made) == 50
    assert sum(reply.is_correct for reply in made) >= 48, wrong(made)
