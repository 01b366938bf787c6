from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from tests.support.eval_results import eval_result
from trainer.evaluation.compare import (
    compare_runs,
    comparison_notes,
    comparison_table,
    render_comparison,
    write_comparison,
)
from trainer.evaluation.results import ResultLog, ResultsError


def run(
    directory: Path,
    reward: Callable[[int, int], float],
    *,
    problems: int = 40,
    benchmark: str = "b",
    tokens: int = 100,
) -> Path:
    """Write an evaluation with 2 samples per problem; ``reward`` takes problem and sample."""
    log = ResultLog(directory, {"model": "m"})
    for problem in range(problems):
        for sample in range(2):
            value = reward(problem, sample)
            log.add(eval_result(str(problem), sample, value, benchmark=benchmark, tokens=tokens + problem))
    return directory


def test_a_run_is_equal_to_itself(tmp_path: Path) -> None:
    a = run(tmp_path / "a", lambda p, s: float(p % 3 == 0))
    [item] = compare_runs(a, a).benchmarks
    assert (item.difference.mean, item.difference.interval, item.difference.p_value) == (0.0, (0.0, 0.0), 1.0)
    assert (item.better, item.worse, item.unpaired, item.largest) == (0, 0, 0, [])


def test_differences_are_paired(tmp_path: Path) -> None:
    a = run(tmp_path / "a", lambda p, s: float(p % 2))
    b = run(tmp_path / "b", lambda p, s: float(p % 2 or p < 10), tokens=90)
    comparison = compare_runs(a, b)
    [item] = comparison.benchmarks
    assert (item.accuracy_a, item.accuracy_b) == (0.5, 0.625)
    assert item.difference.mean == comparison.mean_difference == pytest.approx(0.125)
    assert (item.better, item.worse) == (5, 0)
    assert item.tokens.mean == pytest.approx(-10)
    # All 5 changed problems got better: 2 / 2**5 of the sign patterns are as extreme.
    assert item.difference.p_value == pytest.approx(2 / 32, abs=0.02)
    assert item.difference.interval is not None
    assert item.difference.interval[0] >= 0
    assert [pair.problem_id for pair in item.largest] == ["0", "2", "4", "6", "8"]
    # The interval of the difference is far narrower than those of the two runs.
    assert item.difference.interval[1] - item.difference.interval[0] < 0.25


def test_only_common_problems_and_benchmarks_are_compared(tmp_path: Path) -> None:
    a = run(tmp_path / "a", lambda p, s: 1.0, problems=6)
    b = run(tmp_path / "b", lambda p, s: 1.0, problems=4)
    run(tmp_path / "b", lambda p, s: 0.0, benchmark="other")
    comparison = compare_runs(a, b)
    assert [(item.benchmark, item.problems, item.unpaired) for item in comparison.benchmarks] == [("b", 4, 2)]
    assert comparison_notes(comparison) == ["b: 2 problems are in one evaluation only and are left out."]


def test_several_benchmarks_have_a_mean(tmp_path: Path) -> None:
    for name, value in (("a", 0.0), ("b", 1.0)):
        run(tmp_path / name, lambda p, s, value=value: value * (p % 2))  # type: ignore[misc]
        run(tmp_path / name, lambda p, s: 1.0, benchmark="other")
    comparison = compare_runs(tmp_path / "a", tmp_path / "b")
    assert comparison.mean_difference == pytest.approx(0.25)
    assert comparison.mean_interval is not None
    assert comparison.mean_interval[0] < 0.25 < comparison.mean_interval[1]
    console = Console(file=io.StringIO(), width=80)
    console.print(comparison_table(comparison))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    [row] = [line for line in lines if line.strip().startswith("b ")]
    assert row.split()[:5] == ["b", "40", "0.0", "50.0", "+50.0"]
    assert any(line.split()[:2] == ["mean", "+25.0"] for line in lines)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("missing", ["settings.json", "attempts.jsonl", None])
def test_directories_without_an_evaluation(tmp_path: Path, missing: str | None) -> None:
    a = run(tmp_path / "a", lambda p, s: 1.0, problems=1)
    b = tmp_path / "gone" if missing is None else run(tmp_path / "b", lambda p, s: 1.0, problems=1)
    if missing is not None:
        (b / missing).unlink()
    with pytest.raises(ResultsError, match="has no evaluation: pass a directory that was used as --out"):
        compare_runs(a, b)


def test_evaluations_that_cannot_be_compared(tmp_path: Path) -> None:
    a = run(tmp_path / "a", lambda p, s: 1.0)
    b = run(tmp_path / "b", lambda p, s: 1.0, benchmark="other")
    with pytest.raises(ResultsError, match=r"no benchmark in common: .*a has b, .*b has other"):
        compare_runs(a, b)
    log = ResultLog(tmp_path / "c", {})
    log.add(eval_result("3", 0, 1.0, question="another"))
    with pytest.raises(ResultsError, match="b, row 3 is another problem in the second evaluation"):
        compare_runs(a, tmp_path / "c")
    ResultLog(tmp_path / "d", {}).add(eval_result("99", 0, 1.0))
    with pytest.raises(ResultsError, match="b: the two evaluations have no problem in common"):
        compare_runs(a, tmp_path / "d")


def test_a_line_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    a = run(tmp_path / "a", lambda p, s: 1.0, problems=2)
    path = a / "attempts.jsonl"
    path.write_bytes(path.read_bytes() + b'{"benchmark": "b", "probl')
    before = path.read_bytes()
    assert compare_runs(a, a).benchmarks[0].problems == 2
    assert path.read_bytes() == before


def test_files(tmp_path: Path) -> None:
    a = run(tmp_path / "a<b>", lambda p, s: 0.0)
    b = run(tmp_path / "b", lambda p, s: float(p == 3))
    comparison = compare_runs(a, b)
    write_comparison(tmp_path / "out", comparison)
    values = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert values["mean_difference"] == comparison.mean_difference == 0.025
    assert values["benchmarks"][0]["pairs"][3] == {
        "problem_id": "3",
        "question": "1 + 1?",
        "a": 0.0,
        "b": 1.0,
    }
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert page == render_comparison(comparison)
    assert "a&lt;b&gt;" in page
    assert "<b>" not in page
    assert "+2.5 %" in page
    assert "src=" not in page
    assert "href=" not in page
