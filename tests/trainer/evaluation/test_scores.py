from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.eval_results import eval_result
from trainer.evaluation.scores import pass_at_k, score


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_share_of_draws_with_correct_answer(right: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(right)))
    draws = list(combinations(right, k))
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_rejects_invalid_arguments(n: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"n={n}, correct={correct}, k={k}"):
        pass_at_k(n, correct, k)


def test_accuracy_is_mean_over_problems() -> None:
    scores = score(
        "b",
        [eval_result("p", s, float(s < 3)) for s in range(4)] + [eval_result("q", s, 0.0) for s in range(4)],
    )
    assert (scores.problems, scores.samples, scores.accuracy) == (2, 4, 0.375)
    assert scores.accuracy_error == pytest.approx(0.375)
    assert scores.pass_at == {1: 0.375, 2: 0.5, 4: 0.5}


def test_k_is_minimum_of_samples() -> None:
    scores = score(
        "b", [eval_result("p", s, 1.0) for s in range(5)] + [eval_result("q", s, 0.0) for s in range(3)]
    )
    assert (scores.samples, set(scores.pass_at)) == (3, {1, 2, 3})


def test_tool_usage() -> None:
    used = {
        "flushes": 2,
        "executed": 4,
        "delayed": 1,
        "tool_errors": 1,
        "tool_seconds": 2.0,
        "hidden_seconds": 1.5,
    }
    none = {
        "flushes": 0,
        "executed": 0,
        "delayed": 0,
        "tool_errors": 0,
        "tool_seconds": 0.0,
        "hidden_seconds": 0.0,
    }
    scores = score("b", [eval_result("p", 0, 1.0, **used), eval_result("p", 1, 0.0, **none, finish="length")])
    assert (scores.delay_rate, scores.flushes, scores.tool_error_rate, scores.time_hidden) == (
        0.25,
        1.0,
        0.5,
        0.75,
    )
    assert (scores.cut, scores.tokens, scores.attempts) == (0.5, 100.0, 2)


def test_no_tool_scores_without_tool_reports() -> None:
    scores = score("b", [eval_result("p", 0, 1.0)])
    assert (scores.delay_rate, scores.flushes, scores.tool_error_rate, scores.time_hidden) == (None,) * 4


def test_counts_unanswered_and_too_long() -> None:
    long = {"finish": "too_long", "reason": "no_answer"}
    scores = score("b", [
        eval_result("p", 0, 1.0), eval_result("p", 1, 0.0, reason="no_answer"),
        eval_result("q", 0, 0.0, **long), eval_result("q", 1, 0.0, **long),
    ])  # fmt: skip
    assert (scores.unanswered, scores.too_long, scores.cut, scores.accuracy) == (0.75, 1, 0.0, 0.25)


def test_single_problem_has_no_standard_error() -> None:
    assert score("b", [eval_result("p", 0, 1.0), eval_result("p", 1, 0.0)]).accuracy_error is None


def test_rejects_empty_results() -> None:
    with pytest.raises(ValueError, match="b: no results"):
        score("b", [])
