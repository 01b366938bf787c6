from __future__ import annotations

import sys
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


@pytest.mark.parametrize("source", ["quickstart:50", "multi-hop:50", "reasoning-gym:gcd,lcm:50"])
def test_generated_problems_have_a_token_limit(source: str) -> None:
    if source.startswith("reasoning-gym"):
        pytest.importorskip("reasoning_gym")
    lengths = [len(problem.question) for problem in load_source(source).problems]
    limit = sorted(lengths)[25]
    found = load_source(source, count_tokens=lambda problem: len(problem.question), max_prompt_tokens=limit)
    assert [len(problem.question) for problem in found.problems] == [n for n in lengths if n <= limit]
    assert found.too_long == sum(n > limit for n in lengths) > 0
    with pytest.raises(DataError, match="all 50 are too long"):
        load_source(source, count_tokens=lambda _: 2, max_prompt_tokens=1)


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


def test_reasoning_gym_takes_problems_in_turn() -> None:
    pytest.importorskip("reasoning_gym")
    problems = load_source("reasoning-gym:gcd,lcm,simple_equations:7").problems
    assert len(problems) == 7
    assert "Greatest Common Divisor" in problems[0].question
    assert "Least Common Multiple" in problems[1].question
    assert "Solve for" in problems[2].question
    assert problems == load_source("reasoning-gym:gcd,lcm,simple_equations:7").problems
    held_out = load_source("reasoning-gym-held-out:gcd,lcm,simple_equations:7").problems
    assert not {p.question for p in problems} & {p.question for p in held_out}
    with pytest.raises(DataError, match="reasoning-gym"):
        load_source("reasoning-gym:no_such_set:7")


def test_reasoning_gym_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(DataError, match=r"ih-grpo\[generators\]"):
        load_source("reasoning-gym:gcd:7")
