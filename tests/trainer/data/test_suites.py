from __future__ import annotations

from pathlib import Path

import pytest

from trainer.data.suites import SUITES, Benchmark, parse_benchmark, suite
from trainer.rewards.registry import load_reward


def test_the_papers_benchmarks_and_samples() -> None:
    samples = {item.name: item.samples for item in suite("paper")}
    assert samples == {"aime24": 32, "aime25": 32, "amc23": 32, "hmmt25": 32, "math500": 8, "olympiad": 8}


def test_other_domains_are_graded_by_letter() -> None:
    found = suite("paper-other-domains")
    assert [item.name.split("_")[0] for item in found] == ["logiqa", "mmlu", "bbh", "bbh", "bbh"]
    assert {item.reward for item in found} == {"multiple_choice"}


@pytest.mark.parametrize("name", SUITES)
def test_names_differ_and_rewards_exist(name: str) -> None:
    names = [item.name for item in SUITES[name]]
    assert len(set(names)) == len(names)
    for item in SUITES[name]:
        assert item.source.count(":") == 2  # configuration and split are fixed
        load_reward(item.reward or "math")


def test_local_copies_come_first(tmp_path: Path) -> None:
    (tmp_path / "aime24.parquet").touch()
    (tmp_path / "math500.jsonl.gz").touch()
    (tmp_path / "amc23").mkdir()
    sources = {item.name: item.source for item in suite("paper", tmp_path)}
    assert sources["aime24"] == str(tmp_path / "aime24.parquet")
    assert sources["math500"] == str(tmp_path / "math500.jsonl.gz")
    assert sources["amc23"] == str(tmp_path / "amc23")
    assert sources["aime25"] == "math-ai/aime25::test"


def test_unknown_suites() -> None:
    with pytest.raises(
        ValueError, match=r"unknown suite 'papers'\. hint: known suites are paper, paper-other"
    ):
        suite("papers")


@pytest.mark.parametrize(
    ("text", "benchmark"),
    [
        ("a/aime24.parquet", Benchmark("aime24", "a/aime24.parquet")),
        ("mine=a/b.jsonl", Benchmark("mine", "a/b.jsonl")),
        ("org/name:config:split", Benchmark("name-config", "org/name:config:split")),
        ("math=org/name", Benchmark("math", "org/name")),
        ("runs/lr=1/x.jsonl", Benchmark("x", "runs/lr=1/x.jsonl")),
        ("quickstart-held-out:200", Benchmark("quickstart-held-out:200", "quickstart-held-out:200")),
    ],
)
def test_arguments(text: str, benchmark: Benchmark) -> None:
    assert parse_benchmark(text) == benchmark
