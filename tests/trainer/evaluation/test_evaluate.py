from __future__ import annotations

import asyncio
import io
import json
import shutil
import sys
import types
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from pydantic import ValidationError
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from service.deferral.answer import last_boxed
from service.engines import adapters
from service.engines.settings import TransformersSettings
from service.engines.transformers.engine import TransformersEngine
from tests.support.peft_adapters import make_adapter
from tests.support.serving import make_app, serve
from tests.support.toy_task import GOLD, POLICY, QUESTION, toy_sandbox
from trainer.evaluation.backends import BackendError, Messages, Solution
from trainer.evaluation.evaluate import (
    MAX_FAILURES,
    EvalConfig,
    check_problems,
    evaluate,
    make_rewards,
    read_benchmarks,
    scores_of,
)
from trainer.evaluation.results import ResultLog, ResultsError, checkpoint_fingerprint, read_problems
from trainer.evaluation.run import run_evaluation
from trainer.rewards import FinishedEpisode, Reward
from trainer.rewards.registry import RewardSet


def config(tmp_path: Path, **changes: object) -> EvalConfig:
    benchmark = tmp_path / "aime24.jsonl"
    rows = [{"question": f"{QUESTION} {i}", "answer": GOLD} for i in range(3)]
    benchmark.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, object] = {
        "benchmarks": [benchmark],
        "out": tmp_path / "out",
        "model": "m",
        "samples": 2,
    }
    return EvalConfig.model_validate({**values, **changes})


class PlainScorer:
    """Correct means the same text."""

    async def score(self, response_text: str, gold: str) -> Reward:
        right = last_boxed(response_text) == gold
        return Reward(float(right), "correct" if right else "incorrect")


class FakeBackend:
    """Backend that answers 1 for even seeds. The first ``failures`` calls fail."""

    def __init__(self, failures: int = 0) -> None:
        self.calls: list[tuple[str, int]] = []
        self._failures = failures

    async def solve(self, messages: Messages, seed: int) -> Solution:
        self.calls.append((str(messages[-1]["content"]), seed))
        if len(self.calls) <= self._failures:
            raise BackendError("away")
        return Solution(f"\\boxed{{{1 - seed % 2}}}", "stop", tokens=5, seconds=0.1, tools=None)


async def go(settings: EvalConfig, backend: FakeBackend) -> ResultLog:
    log = ResultLog(settings.out, settings.deciding())
    rewards = RewardSet(scorer=PlainScorer())  # type: ignore[arg-type]
    benchmarks = read_benchmarks(settings)
    await evaluate(settings, benchmarks, backend, dict.fromkeys(benchmarks, rewards), log)
    return log


async def test_every_sample_has_its_own_seed(tmp_path: Path) -> None:
    backend = FakeBackend()
    log = await go(config(tmp_path), backend)
    assert len(log.results) == len({seed for _, seed in backend.calls}) == 6
    again = FakeBackend()
    await go(config(tmp_path, out=tmp_path / "other"), again)
    assert again.calls == backend.calls
    [scores] = scores_of(read_benchmarks(config(tmp_path)), log)
    assert (scores.benchmark, scores.problems, scores.samples) == ("aime24", 3, 2)
    assert scores.accuracy == sum(seed % 2 == 0 for _, seed in backend.calls) / 6


async def test_resuming_runs_only_missing_episodes(tmp_path: Path) -> None:
    first, second = FakeBackend(), FakeBackend()
    await go(config(tmp_path, samples=1), first)
    await go(config(tmp_path, samples=3), second)
    assert (len(first.calls), len(second.calls)) == (3, 6)
    assert not set(first.calls) & set(second.calls)


async def test_failures_are_reported_and_retried(tmp_path: Path) -> None:
    settings = config(tmp_path, max_concurrent_episodes=1)
    with pytest.raises(BackendError, match="2 episodes failed, the last one: away"):
        await go(settings, FakeBackend(failures=2))
    second = FakeBackend()
    assert len((await go(settings, second)).results) == 6
    assert len(second.calls) == 2


async def test_stops_after_too_many_failures(tmp_path: Path) -> None:
    backend = FakeBackend(failures=1000)
    with pytest.raises(BackendError, match=f"{MAX_FAILURES} episodes failed"):
        await go(config(tmp_path, samples=32, max_concurrent_episodes=1), backend)
    assert len(backend.calls) == MAX_FAILURES


def change(path: Path) -> None:
    path.write_text(path.read_text().replace(f"{QUESTION} 1", "another"))


async def test_rejects_changed_benchmark(tmp_path: Path) -> None:
    settings = config(tmp_path)
    log = await go(settings, FakeBackend())
    check_problems(read_benchmarks(settings), log)
    check_problems({"another": []}, log)
    change(Path(settings.benchmarks[0]))
    with pytest.raises(ResultsError, match="aime24, row 1 differs from the problem of the existing results"):
        check_problems(read_benchmarks(settings), log)


def test_defaults_are_those_of_the_paper(tmp_path: Path) -> None:
    settings = config(tmp_path, samples=None)
    assert (settings.temperature, settings.top_p) == (1.0, 0.7)
    names = ("aime24", "aime25", "amc23", "hmmt25", "math500", "olympiad", "mine")
    assert [settings.samples_of(name) for name in names] == [32, 32, 32, 32, 8, 8, 8]


@pytest.mark.parametrize(("changes", "message"), [
    ({"benchmarks": []}, "benchmarks: missing. hint: pass files or hub ids, or --suite paper"),
    ({"benchmarks": ["a/x.jsonl", "b/x.parquet"]}, "two benchmarks are named 'x'.*write name=source"),
    ({"suite": "papers"}, "unknown suite 'papers'"),
    ({"suite_dir": "x"}, "suite_dir needs suite"),
    ({"reward": "maths"}, "unknown reward 'maths'. Did you mean 'math'"),
    ({"reward": "no_such_module:f"}, "cannot import module 'no_such_module'"),
    ({"pass_at": [3]}, "pass_at is 3: .*between 1 and the 2 samples"),
    ({"pass_at": [0]}, "pass_at is 0"),
    ({"url": "host:8000"}, "'host:8000' is not a base URL"),
    ({"url": "http://"}, "is not a base URL"),
    ({"api_key": "k"}, "api_key needs url"),
    ({"instruction": "Solve"}, "instruction needs url"),
    ({"url": "http://x", "base": "org/base"}, "base has no effect with url"),
    ({"sandbox": "runner"}, "runner_token_file is missing"),
])  # fmt: skip
def test_rejects_invalid_settings(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(tmp_path, **changes)


def test_greedy_samples_are_equal_so_one_is_run(tmp_path: Path) -> None:
    assert config(tmp_path, temperature=0, samples=3).samples_of("aime24") == 1
    assert config(tmp_path, temperature=0, samples=None).samples_of("aime24") == 1


def test_suites_and_own_benchmarks(tmp_path: Path) -> None:
    settings = config(tmp_path, suite="paper-other-domains", benchmarks=["mine=org/name"], samples=None)
    assert [benchmark.name for benchmark in settings.sets][-1] == "mine"
    assert (settings.samples_of("logiqa"), settings.samples_of("mine")) == (1, 8)
    assert (settings.reward_of("logiqa"), settings.reward_of("mine")) == ("multiple_choice", "math")
    rewards = make_rewards(settings)
    assert rewards["logiqa"] is rewards["mmlu_pro"] is not rewards["mine"]
    assert config(tmp_path, suite="paper-other-domains", reward="math").reward_of("logiqa") == "math"


@pytest.mark.parametrize("python", [True, False])
async def test_multiple_choice_from_file_to_votes(tmp_path: Path, python: bool) -> None:
    path = tmp_path / "logic.json"
    row = {"question": "Capital of Italy?", "options": ["Paris", "Rome", "Oslo"], "answer": 1}
    path.write_text(json.dumps([row]))
    settings = config(tmp_path, benchmarks=[path], reward="multiple_choice", samples=4, python=python)
    replies = iter(["The answer is (B).", r"\boxed{Rome}", "The answer is A", "no idea"])

    class Backend:
        async def solve(self, messages: Messages, seed: int) -> Solution:
            assert "(B) Rome" in str(messages[-1]["content"])
            return Solution(next(replies), "stop", 5, 0.1, None)

    log = ResultLog(settings.out, settings.deciding())
    benchmarks = read_benchmarks(settings)
    await evaluate(settings, benchmarks, Backend(), make_rewards(settings), log)
    results = list(log.results.values())
    assert sorted((r.reason, r.answer) for r in results) == [
        ("correct", "B"), ("correct", "B"), ("incorrect", "A"), ("no_answer", None),
    ]  # fmt: skip
    [scores] = scores_of(benchmarks, log)
    assert (scores.accuracy, scores.maj_at[4], scores.pass_at[2]) == (0.5, 1.0, pytest.approx(5 / 6))


async def test_own_rewards_see_the_row_and_the_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def judge(episode: FinishedEpisode, row: Mapping[str, Any]) -> Reward | None:
        return Reward(0.25, "short") if episode.tokens < 9 and row["answer"] == GOLD else None

    module = types.ModuleType("own_eval_rewards")
    module.__dict__["judge"] = judge
    monkeypatch.setitem(sys.modules, "own_eval_rewards", module)
    settings = config(tmp_path, reward="own_eval_rewards:judge")
    log = ResultLog(settings.out, settings.deciding())
    benchmarks = read_benchmarks(settings)
    await evaluate(settings, benchmarks, FakeBackend(), make_rewards(settings), log)
    assert {(result.reward, result.reason) for result in log.results.values()} == {(0.25, "short")}


async def test_a_missing_verdict_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(episode: FinishedEpisode, row: Mapping[str, Any]) -> None:
        return None

    module = types.ModuleType("own_eval_rewards")
    module.__dict__["silent"] = silent
    monkeypatch.setitem(sys.modules, "own_eval_rewards", module)
    settings = config(tmp_path, reward="own_eval_rewards:silent")
    log = ResultLog(settings.out, settings.deciding())
    with pytest.raises(BackendError, match=r"the last one: no reward for row \d of aime24: no_verdict"):
        await evaluate(settings, read_benchmarks(settings), FakeBackend(), make_rewards(settings), log)


def test_api_key_is_not_saved(tmp_path: Path) -> None:
    assert "k1234" not in json.dumps(config(tmp_path, url="http://x/v1", api_key="k1234").deciding())


def test_evaluates_checkpoint_from_file_to_report(tmp_path: Path, toy_checkpoint: Path) -> None:
    settings = config(
        tmp_path, model=str(toy_checkpoint), samples=8, top_p=1.0, device="cpu", threads=1, limit=1
    )
    console = Console(file=io.StringIO(), width=140)
    [scores] = run_evaluation(settings, console, sandbox=toy_sandbox())
    assert (scores.problems, scores.samples) == (1, 8)
    assert scores.flushes is not None
    assert "aime24" in console.file.getvalue()  # type: ignore[attr-defined]
    report = json.loads((settings.out / "report.json").read_text())
    assert report["scores"][0]["accuracy"] == scores.accuracy
    assert (settings.out / "report.html").is_file()
    assert len(read_problems(settings.out)) == 1
    assert run_evaluation(settings, console, sandbox=toy_sandbox()) == [scores]  # no episode runs again


def test_evaluates_an_adapter_with_its_base(tmp_path: Path, toy_checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(toy_checkpoint)
    make_adapter(model, tmp_path / "adapter", base=Path("org/base"))
    shutil.copyfile(toy_checkpoint / "deferral.json", tmp_path / "adapter" / "deferral.json")
    settings = config(
        tmp_path, model=str(tmp_path / "adapter"), base=str(toy_checkpoint), device="cpu", threads=1, limit=1
    )
    with patch.object(adapters, "cache_dir", lambda: tmp_path / "cache"):
        [scores] = run_evaluation(settings, Console(file=io.StringIO(), width=140), sandbox=toy_sandbox())
    assert scores.attempts == 2
    [merged] = (tmp_path / "cache").iterdir()
    saved = json.loads((settings.out / "settings.json").read_text())
    assert saved["weights"] == checkpoint_fingerprint(merged) != checkpoint_fingerprint(toy_checkpoint)


def test_another_checkpoint_under_the_same_path_is_rejected(tmp_path: Path, toy_checkpoint: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(toy_checkpoint, model)
    how = {"model": str(model), "top_p": 1.0, "device": "cpu", "threads": 1, "limit": 1}
    console = Console(file=io.StringIO(), width=140)
    run_evaluation(config(tmp_path, samples=1, **how), console, sandbox=toy_sandbox())
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] += 0.5
    save_file(weights, model / "model.safetensors")
    with pytest.raises(ResultsError, match="weights: the checkpoint has changed since the evaluation in"):
        run_evaluation(config(tmp_path, samples=2, **how), console, sandbox=toy_sandbox())


def test_an_evaluation_without_a_fingerprint_is_rejected(tmp_path: Path, toy_checkpoint: Path) -> None:
    settings = config(tmp_path, model=str(toy_checkpoint), limit=1, device="cpu", threads=1)
    settings.out.mkdir()
    (settings.out / "settings.json").write_text(json.dumps(settings.deciding()))
    with pytest.raises(ResultsError, match="without a fingerprint of the weights: use another directory"):
        run_evaluation(settings, Console(file=io.StringIO()), sandbox=toy_sandbox())


def test_an_evaluation_resumes_with_the_same_dtype(tmp_path: Path) -> None:
    half = config(tmp_path, model="m", engine_dtype="bfloat16").deciding()
    auto = config(tmp_path, model="m").deciding()
    for name, saved in (("half", half), ("old", {k: v for k, v in auto.items() if k != "engine_dtype"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.json").write_text(json.dumps(saved))
    with pytest.raises(ResultsError, match=r"engine_dtype is 'auto', but .* 'bfloat16'"):
        ResultLog(tmp_path / "half", auto)
    ResultLog(tmp_path / "old", auto)


@pytest.mark.parametrize(
    "options", [{"python": False}, {"thinking": True}, {"temperature": 0.0, "samples": 3}]
)
def test_other_modes_from_file_to_report(
    tmp_path: Path, toy_checkpoint: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    how = {"model": str(toy_checkpoint), "device": "cpu", "threads": 1, "limit": 2, **options}
    settings = config(tmp_path, **how)
    sandbox = toy_sandbox() if settings.python else None
    [scores] = run_evaluation(settings, Console(file=io.StringIO(), width=140), sandbox=sandbox)
    assert (scores.flushes is None) == (not settings.python)
    assert scores.samples == (1 if settings.temperature == 0 else 2)
    assert ("one is run and counted" in capsys.readouterr().err) == (settings.temperature == 0)


async def test_live_server_scores_like_its_checkpoint(tmp_path: Path, toy_checkpoint: Path) -> None:
    """The same seeds give the same episodes over HTTP."""
    options = {"samples": 16, "top_p": 1.0, "limit": 1}
    here = config(tmp_path, model=str(toy_checkpoint), device="cpu", threads=1, **options)
    console = Console(file=io.StringIO(), width=80)
    [expected] = await asyncio.to_thread(run_evaluation, here, console, sandbox=toy_sandbox())
    engine = TransformersEngine(TransformersSettings(model=str(toy_checkpoint), model_name="toy", threads=1))
    async with serve(make_app(engine, toy_sandbox(), POLICY, api_keys="k1"), "k1") as served:
        values = {"model": "toy", "url": f"{served.url}/v1", "out": tmp_path / "served", **options}
        with pytest.raises(BackendError, match="rejected the key"):
            await asyncio.to_thread(run_evaluation, config(tmp_path, **values, api_key="wrong"), console)
        settings = config(tmp_path, **values, api_key="k1")
        [scores] = await asyncio.to_thread(run_evaluation, settings, console)
    assert 0 < scores.accuracy < 1
    assert (scores.flushes or 0) > 0
    assert scores == replace(expected, time_hidden=scores.time_hidden)


def test_url_spellings_of_one_server_are_equal(tmp_path: Path) -> None:
    urls = ("http://x", "http://x/", "http://x/v1", "http://x/v1/")
    assert {config(tmp_path, url=url).deciding()["url"] for url in urls} == {"http://x/v1"}
