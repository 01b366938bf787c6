from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

from service.deferral.answer import last_boxed
from service.engines.settings import TransformersSettings
from service.engines.transformers.engine import TransformersEngine
from tests.support.serving import make_app, serve
from tests.support.toy_task import GOLD, POLICY, QUESTION, toy_sandbox
from trainer.evaluation.backends import BackendError, Solution
from trainer.evaluation.evaluate import (
    MAX_FAILURES,
    EvalConfig,
    check_problems,
    evaluate,
    read_benchmarks,
    scores_of,
)
from trainer.evaluation.results import ResultLog, ResultsError
from trainer.evaluation.run import run_evaluation
from trainer.rewards import Reward


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


class Judge:
    async def score(self, response_text: str, gold: str) -> Reward:
        right = last_boxed(response_text) == gold
        return Reward(float(right), "correct" if right else "incorrect")


class FakeBackend:
    """Backend that answers 1 for even seeds. The first ``failures`` calls fail."""

    def __init__(self, failures: int = 0) -> None:
        self.calls: list[tuple[str, int]] = []
        self._failures = failures

    async def solve(self, question: str, seed: int) -> Solution:
        self.calls.append((question, seed))
        if len(self.calls) <= self._failures:
            raise BackendError("away")
        return Solution(f"\\boxed{{{1 - seed % 2}}}", "stop", tokens=5, seconds=0.1, tools=None)


async def go(settings: EvalConfig, backend: FakeBackend) -> ResultLog:
    log = ResultLog(settings.out, settings.deciding())
    await evaluate(settings, read_benchmarks(settings), backend, Judge(), log)
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


async def test_rejects_changed_benchmark(tmp_path: Path) -> None:
    settings = config(tmp_path)
    log = await go(settings, FakeBackend())
    check_problems(read_benchmarks(settings), log)
    check_problems({"another": []}, log)
    path = settings.benchmarks[0]
    path.write_text(path.read_text().replace(f"{QUESTION} 1", "another"))
    with pytest.raises(ResultsError, match="aime24, row 1 differs from the problem of the existing results"):
        check_problems(read_benchmarks(settings), log)


def test_defaults_are_those_of_the_paper(tmp_path: Path) -> None:
    settings = config(tmp_path, samples=None)
    assert (settings.temperature, settings.top_p) == (1.0, 0.7)
    names = ("aime24", "aime25", "amc23", "hmmt25", "math500", "olympiad", "mine")
    assert [settings.samples_of(name) for name in names] == [32, 32, 32, 32, 8, 8, 8]


@pytest.mark.parametrize(("changes", "message"), [
    ({"benchmarks": []}, "benchmarks"),
    ({"benchmarks": ["a/x.jsonl", "b/x.parquet"]}, "two files are named 'x'"),
    ({"url": "host:8000"}, "'host:8000' is not a base URL"),
    ({"url": "http://"}, "is not a base URL"),
    ({"api_key": "k"}, "api_key needs url"),
    ({"instruction": "Solve"}, "instruction needs url"),
    ({"sandbox": "runner"}, "runner_token_file is missing"),
])  # fmt: skip
def test_rejects_invalid_settings(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(tmp_path, **changes)


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
    assert run_evaluation(settings, console, sandbox=toy_sandbox()) == [scores]  # no episode runs again


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
