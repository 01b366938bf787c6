from __future__ import annotations

from random import Random

import pytest

from trainer.quickstart.problems import EVERYDAY, everyday_question, in_box
from trainer.quickstart.traces import TraceMix, write_trace

FAMILIES = {family.__name__: family for family in EVERYDAY}


@pytest.mark.parametrize("name", FAMILIES)
def test_plan_gives_answer(name: str) -> None:
    for seed in range(60):
        problem = FAMILIES[name](Random(seed))
        trace = write_trace(problem, Random(seed), TraceMix(detour_share=0), "<tool_call>")
        assert trace.segments[-1].text.count(f"\\boxed{{{problem.boxed}}}") == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_questions_are_diverse(name: str) -> None:
    assert len({FAMILIES[name](Random(seed)).text for seed in range(100)}) > 90


def test_same_seed_gives_same_question() -> None:
    assert everyday_question(Random(5)) == everyday_question(Random(5))


@pytest.mark.parametrize(
    ("printed", "boxed"),
    [("True", "yes"), ("False", "no"), ("25.0", "25"), ("2.5", "2.5"), ("-7", "-7"), ("10", "10")],
)
def test_boxed_answers(printed: str, boxed: str) -> None:
    assert in_box(printed) == boxed
