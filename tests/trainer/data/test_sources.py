from __future__ import annotations

from pathlib import Path

import pytest

from trainer.data.problems import DataError
from trainer.data.sources import load_benchmarks, load_source


def test_synthetic_problems_are_deterministic() -> None:
    first = load_source("quickstart:50").problems
    assert len(first) == 50
    assert load_source("quickstart:60").problems[:50] == first
    assert len({problem.id for problem in first}) == 50
    assert all(problem.answer.lstrip("-").isdigit() for problem in first)


def test_held_out_problems_differ() -> None:
    shown = {problem.question for problem in load_source("quickstart:500").problems}
    held_out = {problem.question for problem in load_source("quickstart-held-out:50").problems}
    assert not shown & held_out


def test_other_sources_are_files_or_hub_ids(tmp_path: Path) -> None:
    path = tmp_path / "quickstart.jsonl"
    path.write_text('{"question": "1 + 1?", "answer": "2"}\n')
    assert len(load_source(path).problems) == 1
    with pytest.raises(DataError, match="must be a"):
        load_source("quickstart:many")


def test_benchmarks_by_name_and_whatever_their_gold_answers(tmp_path: Path) -> None:
    path = tmp_path / "logic.jsonl"
    path.write_text('{"question": "Which?", "answer": "(("}\n')
    found = load_benchmarks([str(path), f"again={path}"])
    assert {name: [problem.answer for problem in problems] for name, problems in found.items()} == {
        "logic": ["(("],
        "again": ["(("],
    }
