from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from service.cli.main import app

RUN = CliRunner()
SHARED = "a train leaves the station at noon and travels north at sixty miles per hour"


def test_decontaminate(tmp_path: Path) -> None:
    train, exam = tmp_path / "train.jsonl", tmp_path / "exam.json"
    rows = [{"problem": f"Yesterday {SHARED}.", "answer": "2", "level": 1}, {"problem": "1+1?", "answer": 2}]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    exam.write_text(json.dumps([{"prompt": SHARED, "solution": r"\boxed{2}"}]))
    out, report = tmp_path / "clean.jsonl", tmp_path / "overlaps.json"
    files = ["--out", str(out), "--report", str(report)]
    result = RUN.invoke(app, ["train", "decontaminate", str(train), "--against", str(exam), *files])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(
        "1 of 2 problems (50.00%) overlap with evaluation problems (13-grams; 1 with exam)"
    )
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows[1:]
    [overlap] = json.loads(report.read_text())["overlaps"]
    assert (overlap["benchmark"], overlap["share"]) == ("exam", 1.0)


def test_rows_without_an_answer_are_counted(tmp_path: Path) -> None:
    train, exam = tmp_path / "train.jsonl", tmp_path / "exam.json"
    train.write_text('{"problem": "1+1?", "answer": "2"}\n{"problem": "1+2?", "answer": ""}\n')
    exam.write_text(json.dumps([{"prompt": SHARED, "solution": r"\boxed{2}"}]))
    out = tmp_path / "clean.jsonl"
    command = ["train", "decontaminate", str(train), "--against", str(exam), "--out", str(out)]
    result = RUN.invoke(app, command)
    assert "rows without an answer, left out: 1" in result.stdout
    assert len(out.read_text().splitlines()) == 1


def test_missing_files_are_reported(tmp_path: Path) -> None:
    result = RUN.invoke(app, ["train", "decontaminate", "gone.jsonl", "--against", "gone.json"])
    assert result.exit_code == 2
    assert "gone.jsonl: the file does not exist" in result.stderr
