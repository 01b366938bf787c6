from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli.main import app
from tests.support.eval_results import eval_result
from trainer.data.sources import load_source
from trainer.evaluation.results import ResultLog

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
