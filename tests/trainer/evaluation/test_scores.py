from __future__ import annotations

import pytest

from tests.support.eval_results import eval_result
from trainer.evaluation.scores import score


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


def test_votes_are_read_from_the_answers_in_one_spelling() -> None:
    wrong = [r"\dfrac{1}{2}", r"\frac{1}{2}.", r"\left(3\right)", "7"]
    results = [eval_result("p", i, 0.0, answer=answer) for i, answer in enumerate(wrong)]
    results.append(eval_result("p", 4, 1.0, answer="5"))
    scores = score("b", results)
    assert results[0].vote == results[1].vote == r"\frac{1}{2}"
    assert results[2].vote == "(3)"
    assert scores.maj_at[5] == 0.0  # two votes for one half
    assert scores.maj_at[1] == pytest.approx(scores.pass_at[1])


def test_votes_of_older_files_are_their_boxes() -> None:
    assert eval_result("p", 0, 0.0, text=r"so \boxed{ 7 }").vote == "7"
    assert eval_result("p", 0, 0.0, text="no idea").vote is None


def test_any_k_can_be_reported() -> None:
    scores = score("b", [eval_result("p", s, float(s < 2)) for s in range(6)], pass_at=(3, 5, 100))
    assert set(scores.pass_at) == set(scores.maj_at) == {1, 2, 3, 4, 5, 6}
    assert scores.pass_at[3] == pytest.approx(1 - 4 / 20)


def test_intervals_are_over_problems() -> None:
    results = [eval_result(str(p), s, float(p % 2)) for p in range(40) for s in range(3)]
    scores = score("b", results)
    assert scores.accuracy_interval is not None
    low, high = scores.accuracy_interval
    assert 0.3 < low < 0.42 < 0.58 < high < 0.7
    assert scores.by_problem["1"] == 1.0
    assert score("b", results[:3]).accuracy_interval is None


def test_rewards_below_one_are_not_solved() -> None:
    scores = score("b", [eval_result("p", 0, 0.9), eval_result("p", 1, 1.0)])
    assert (scores.accuracy, scores.pass_at[1]) == (0.95, 0.5)
