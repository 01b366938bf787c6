from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli.main import app
from tests.support.eval_results import eval_result
from trainer.data.layouts import ReadRow, read_row
from trainer.data.problems import Problem
from trainer.data.sources import load_source
from trainer.evaluation.results import ResultLog, save_problems

RUN = CliRunner()


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """Five problems of four samples, solved 0 to 4 times."""
    log = ResultLog(tmp_path / "run", {})
    for problem in range(5):
        for sample in range(4):
            reward = float(sample < problem)
            log.add(
                eval_result(str(problem), sample, reward, question=f"What is {problem}?", gold=str(problem))
            )
    return tmp_path / "run"


def test_problems_with_a_signal_are_written_as_training_data(evaluation: Path, tmp_path: Path) -> None:
    out = tmp_path / "sometimes.jsonl"
    result = RUN.invoke(app, ["eval", "select", str(evaluation), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "3 of 5 problems" in result.stdout
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["question"], row["pass_rate"], row["samples"]) for row in rows] == [
        ("What is 1?", 0.25, 4), ("What is 2?", 0.5, 4), ("What is 3?", 0.75, 4),
    ]  # fmt: skip
    assert [problem.answer for problem in load_source(out).problems] == ["1", "2", "3"]
    RUN.invoke(app, ["eval", "select", str(evaluation), "--out", str(out), "--min", "0.5", "--max", "0.5"])
    assert len(out.read_text().splitlines()) == 1


def test_training_on_the_selection_sees_the_same_problem(tmp_path: Path) -> None:
    source, out = tmp_path / "train.jsonl", tmp_path / "sometimes.jsonl"
    row = {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which one?"}],
        "options": ["red", "blue"],
        "reward_model": {"ground_truth": 1},
        "level": "hard",
        "source": "a book",
    }
    source.write_text(json.dumps(row) + "\n")
    [problem] = load_source(source, check_gold=False).problems
    log = ResultLog(tmp_path / "run", {})
    save_problems(tmp_path / "run", {"b": [problem]})
    for sample in range(2):
        log.add(eval_result("0", sample, float(sample), question=problem.question, gold=problem.answer))
    result = RUN.invoke(app, ["eval", "select", str(tmp_path / "run"), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "older version" not in result.stderr
    [selected] = load_source(out, check_gold=False).problems
    assert selected == replace(problem, id=selected.id)
    assert selected.columns == {**row, "pass_rate": 0.5, "samples": 2}


def test_rows_are_in_the_order_of_the_source(tmp_path: Path) -> None:
    out = tmp_path / "all.jsonl"
    problems = [Problem(f"quickstart:{number}", f"What is {number}?", str(number)) for number in range(12)]
    save_problems(tmp_path / "run", {"b": problems})
    log = ResultLog(tmp_path / "run", {})
    for problem in reversed(problems):
        log.add(eval_result(problem.number, 0, 0.0, question=problem.question, gold=problem.answer))
    result = RUN.invoke(app, ["eval", "select", str(tmp_path / "run"), "--out", str(out), "--min", "0"])
    assert result.exit_code == 0, result.output
    assert [problem.question for problem in load_source(out).problems] == [p.question for p in problems]


def test_generated_problem_is_read_back() -> None:
    context = ({"role": "system", "content": "Be brief."},)
    for problem in (
        Problem("quickstart:0", "1 + 1?", "2"),
        Problem("x:0", "1 + 1?", "2", context, {"kind": "sum"}),
    ):
        row = problem.as_read()
        assert read_row(row) == ReadRow(problem.question, problem.answer, problem.context)
        assert row.items() >= problem.columns.items()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min", "0.9", "--max", "0.1"], "above"),
        (["--min", "0.6", "--max", "0.7"], "none of 5 problems"),
    ],
)
def test_limits_without_a_problem_are_explained(
    evaluation: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    out = tmp_path / "out.jsonl"
    result = RUN.invoke(app, ["eval", "select", str(evaluation), "--out", str(out), *options])
    assert result.exit_code == 2
    assert message in result.stderr
    assert not out.exists()


def test_other_directories_and_files_are_refused(evaluation: Path, tmp_path: Path) -> None:
    gone = RUN.invoke(app, ["eval", "select", str(tmp_path / "gone"), "--out", str(tmp_path / "x")])
    assert (gone.exit_code, gone.stderr.startswith("error ")) == (2, True)
    bad = RUN.invoke(app, ["eval", "select", str(evaluation), "--out", str(tmp_path / "no" / "x")])
    assert bad.exit_code == 2
    assert "cannot write" in bad.stderr
