from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.results import read_columns, render
from tests.real_model.judge import load
from tests.support.eval_results import eval_result
from trainer.evaluation.results import EvalResult, ResultLog

ROOT = Path(__file__).parents[2]
TOOLS = {
    "flushes": 2, "executed": 4, "executed_by_model": 3, "delayed": 1, "tool_errors": 1, "tool_seconds": 3.0,
    "hidden_seconds": 1.0,
}  # fmt: skip


def evaluation(directory: Path, *results: EvalResult, missing: int = 0) -> Path:
    log = ResultLog(directory, {"model": "m", "temperature": 1.0, "top_p": 0.7})
    for result in results:
        log.add(result)
    (directory / "report.json").write_text(json.dumps({"missing_attempts": missing}))
    return directory


def results(rewards: dict[str, list[int]], **fields: object) -> list[EvalResult]:
    return [
        eval_result(problem, sample, reward, **fields)
        for problem, values in rewards.items()
        for sample, reward in enumerate(values)
    ]


def write_toml(path: Path, columns: str, top: str = 'baseline = "plain"') -> Path:
    path.write_text(f"{top}\nmachine = 'two cores'\n{columns}")
    return path


def rows(text: str) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {line[0]: line[1:] for line in lines}


@pytest.fixture
def page(tmp_path: Path) -> str:
    evaluation(tmp_path / "bad-prompt", *results({"0": [0], "1": [0], "2": [0]}))
    evaluation(tmp_path / "good-prompt", *results({"0": [1], "1": [0], "2": [0]}))
    evaluation(tmp_path / "seed-0", *results({"0": [1, 1], "1": [1, 0], "3": [1, 1]}, **TOOLS), missing=3)
    evaluation(tmp_path / "seed-1", *results({"0": [1, 1, 1], "1": [1, 1, 1]}, **TOOLS))
    fields, columns = read_columns(
        write_toml(
            tmp_path / "columns.toml",
            f"""
            [[columns]]
            name = "plain"
            best_of = ["{tmp_path}/bad-prompt", "{tmp_path}/good-prompt"]
            [[columns]]
            name = "trained"
            runs = ["{tmp_path}/seed-0", "{tmp_path}/seed-1"]
            [[columns]]
            name = "later"
            runs = ["{tmp_path}/none"]
            """,
        )
    )
    return render(fields, columns, "columns.toml")


def test_figures_of_each_column(page: str) -> None:
    found = rows(page)
    assert found["problems × samples"] == ["3 × 1", "2 × 2 × 2 runs", "not run"]
    assert [cell.partition(" ")[0] for cell in found["accuracy"]] == ["33.3", "90.0", "not"]
    assert found["accuracy of each run"] == ["33.3", "75.0, 100.0", "not run"]
    assert found["pass@1"] == ["33.3", "87.5", "not run"]
    assert found["pass@3"] == ["-", "-", "not run"]
    assert found["delay rate"] == ["-", "33.3", "not run"]
    assert found["flushes"] == ["-", "2.00", "not run"]
    assert found["tokens"] == ["100", "100", "not run"]
    assert found["flushes with an error"] == ["-", "50.0", "not run"]
    assert found["seconds waited for code"] == ["-", "2.000", "not run"]
    assert found["seconds of code hidden"] == ["-", "1.000", "not run"]


def test_differences_are_paired_on_shared_problems(page: str) -> None:
    found = rows(page)
    difference = found["difference from plain"]
    assert difference[0] == "-"
    assert difference[1].startswith("+40.0 (+0.0 to +80.0)")
    assert found["p, problems compared"][1].endswith(", 2")


def test_notes(page: str) -> None:
    assert "- trained: 3 results are missing, the evaluation is not finished." in page
    assert "- plain: the best of 2 evaluations, by benchmark." in page
    assert "Machine: two cores." in page
    assert "`python benchmarks/results.py columns.toml`" in page


def test_ordinary_requests_are_judged(tmp_path: Path) -> None:
    lines = [
        json.dumps({"key": request.id, "reply": {"choices": [{"message": {"content": "Hello there."}}]}})
        for request in load()
    ]
    (tmp_path / "replies.jsonl").write_text("\n".join(lines))
    evaluation(tmp_path / "run", *results({"0": [1]}))
    columns = f'[[columns]]\nname = "plain"\nruns = ["{tmp_path}/run"]\nrequests = "{tmp_path}/replies.jsonl"'
    fields, read = read_columns(write_toml(tmp_path / "c.toml", columns))
    found = rows(render(fields, read, "c.toml"))
    others = sum(not request.needs_execution for request in load())
    assert found["requests"] == [str(len(load()))]
    assert found["code ran although none was needed"] == [f"0 of {others}"]
    needing = len(load()) - others
    assert found["code did not run although it was needed"] == [f"{needing} of {needing}"]


@pytest.mark.parametrize(
    ("top", "columns", "message"),
    [
        ('baseline = "other"', '[[columns]]\nname = "a"', "baseline 'other' is not a column"),
        ("", '[[columns]]\nname = "a"\nrun = ["x"]', "unknown field 'run'"),
        ("", '[[columns]]\nname = "a"\nruns = []\nbest_of = []', "either runs or best_of"),
        ("", '[[columns]]\nname = "a"\n[[columns]]\nname = "a"', "two columns have the same name"),
    ],
)
def test_rejects_invalid_files(tmp_path: Path, top: str, columns: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        read_columns(write_toml(tmp_path / "c.toml", columns, top))


def test_command_writes_the_page(tmp_path: Path) -> None:
    evaluation(tmp_path / "run", *results({"0": [1], "1": [0]}))
    columns = write_toml(tmp_path / "c.toml", f'[[columns]]\nname = "plain"\nruns = ["{tmp_path}/run"]')
    command = [sys.executable, "-m", "benchmarks.results", str(columns), "--out", str(tmp_path / "page.md")]
    subprocess.run(command, check=True, cwd=ROOT)
    assert "| accuracy | 50.0 (0.0 to 100.0) |" in (tmp_path / "page.md").read_text()
