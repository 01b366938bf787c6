"""The synchronous entry point for scripts and notebooks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.rewards import gold_problem, score_answers

PAIRS = [("5", r"so \boxed{5.}"), ("5", r"\boxed{6}"), ("5", "no box"), (r"\frac{1}{2}", r"\boxed{0.5}")]


def children() -> set[str]:
    return set(
        Path("/proc/self/task")
        .joinpath(str(Path("/proc/self").resolve().name), "children")
        .read_text()
        .split()
    )


def test_scores_keep_order_of_pairs() -> None:
    before = children()
    assert score_answers(PAIRS) == [1.0, 0.0, 0.0, 1.0]
    assert children() == before


def test_empty_batch_starts_no_worker() -> None:
    assert score_answers([]) == []


async def test_works_inside_running_event_loop() -> None:
    assert score_answers(PAIRS, workers=1) == [1.0, 0.0, 0.0, 1.0]
    assert await asyncio.sleep(0, "the loop still runs") == "the loop still runs"


def test_deadline_must_be_positive() -> None:
    with pytest.raises(ValueError, match="deadline_s"):
        score_answers(PAIRS, deadline_s=0)


def test_import_is_light() -> None:
    heavy = "('sympy', 'math_verify', 'torch', 'numpy')"
    code = f"import sys, trainer.rewards; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "gold", ["5", r"\frac{1}{2}", "[0,1)", "(-\\infty, 2]", r"\text{no solution}", "None", r"\emptyset", "°"]
)
def test_accepts_gradable_gold_answers(gold: str) -> None:
    assert gold_problem(gold) is None


@pytest.mark.parametrize(
    ("gold", "problem"),
    [
        ("", "empty"),
        (" ", "empty"),
        ("$$", "empty"),
        (")(", "empty"),
        ("x)(", "unbalanced"),
        (r"\frac{1", "unbalanced"),
        ("The answer is found by adding " + "all of the numbers " * 10, "a text"),
    ],
)
def test_rejects_ungradable_gold_answers(gold: str, problem: str) -> None:
    assert str(gold_problem(gold)).startswith(problem)
