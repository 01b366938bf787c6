"""Every kind of word problem: the plan's code gives the answer that the kind computes itself."""

from __future__ import annotations

from random import Random

import pytest

from trainer.quickstart.traces import TraceMix, write_trace
from trainer.warm_start.problems import KINDS, word_problem
from trainer.warm_start.problems.base import Kind


@pytest.mark.parametrize("kind", dict.fromkeys(KINDS), ids=lambda kind: kind.__name__)
def test_question_answer_and_plan_agree(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.warm_start.problems.KINDS", (kind,))
    texts = set()
    for seed in range(12):
        problem = word_problem(Random(seed))
        for immediate_share in (0.0, 1.0):
            mix = TraceMix(detour_share=0.0, immediate_share=immediate_share)
            trace = write_trace(problem, Random(0), mix, "<tool_call>")  # raises if the answers differ
            markers = sum(segment.text.count("<tool_call>") for segment in trace.segments)
            named = sum(bool(block.name) for block in problem.plan)
            assert 1 <= markers <= 1 + immediate_share * (len(problem.plan) - 1)
            assert immediate_share == 0.0 or markers >= 1 + named * immediate_share
            assert f"\\boxed{{{problem.boxed}}}" in trace.segments[-1].text
        assert "{" not in problem.text.replace("\\boxed{}", "") or "$" in problem.text
        texts.add(problem.text)
    assert len(texts) >= 8


def test_problems_depend_on_the_seed_only_and_ask_for_a_box_sometimes() -> None:
    problems = [word_problem(Random(seed)) for seed in range(60)]
    assert problems == [word_problem(Random(seed)) for seed in range(60)]
    boxed = sum("boxed" in problem.text for problem in problems)
    assert 15 < boxed < 55
    assert any(len(problem.plan) > 2 for problem in problems)


def test_terms_are_written_as_people_write_them() -> None:
    for seed in range(300):
        problem = word_problem(Random(seed))
        for unusual in ("+ -", "- -", " 1x", "$1x", "+ 0x", "0a_"):
            assert unusual not in problem.text, problem.text
