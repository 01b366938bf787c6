from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from service.cli.main import app as main_app
from service.deferral.policy import DeferralPolicy
from tests.support.fake_hub import FakeHub, serve_hub
from tests.support.run_dirs import write_checkpoint, write_run
from trainer.cli.runs import app
from trainer.training.checkpoints import link_best

HISTORY = [{"step": 1, "reward": 0.5, "delay_rate": 0.25}, {"step": 2, "reward": 0.75, "eval_accuracy": 0.5}]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, method in (("first", "ih-grpo"), ("second", "grpo-delayed")):
        directory = tmp_path / "runs" / name
        directory.mkdir(parents=True)
        config = write_run(directory, HISTORY, steps=2, method=method)
        DeferralPolicy().save(directory)
    link_best(write_checkpoint(directory, 2, HISTORY, config))
    DeferralPolicy().save(directory / "checkpoints" / "checkpoint-2")
    return tmp_path / "runs"


def call(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "100"})
    return result.exit_code, result.output


@pytest.mark.parametrize("command", [[], ["list"]], ids=["default", "list"])
def test_lists_runs(runs: Path, command: list[str]) -> None:
    code, text = call(*command, runs)
    assert code == 0
    first, second = (line.split() for line in text.splitlines() if "quickstart" in line)
    assert first == ["first", "quickstart", "ih-grpo", "2/2", "0.750", "50.0%", "25%", "-", "stopped"]
    assert second == ["second", "quickstart", "grpo-delayed", "2/2", "0.750", "50.0%", "25%", "2", "finished"]


def test_list_as_json(runs: Path) -> None:
    code, text = call(runs, "--json")
    assert code == 0
    first, second = map(json.loads, text.splitlines())
    assert first["run"] == str(runs / "first")
    assert (second["state"], second["best_checkpoint"], second["reward"]) == ("finished", 2, 0.75)


def test_empty_and_missing_directories(tmp_path: Path) -> None:
    assert call(tmp_path) == (0, f"no training runs in {tmp_path}\n")
    code, text = call(tmp_path / "nowhere")
    assert code == 2
    assert "does not exist: start a run" in text


def test_compare_writes_page(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code, text = call("compare", runs / "first", runs / "second", "--html", page, "--metric", "reward")
    assert code == 0
    assert "grpo-delayed" in text
    assert "(reward)" in text
    assert "(delay_rate)" not in text
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "nowhere"], "nowhere is not a training run"),
        (["compare", "first", "--metric", "x"], "unknown metric x"),
        (
            ["compare", "first", "--html", "no/such/folder.html"],
            "--html: cannot write to no/such/folder.html",
        ),
        (["push", "first", "org/name"], "first has no checkpoint yet"),
        (["push", "second", "name"], "push_to: 'name' is not a repository"),
        (["push", "second", "org/name", "--step", "9"], "checkpoint-9 has no readable manifest"),
    ],
)
def test_errors(runs: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    code, text = call(*arguments)
    assert code == 2
    assert message in " ".join(text.split())


def test_push_uploads_best_checkpoint(runs: Path) -> None:
    with serve_hub(FakeHub({})) as hub, patch.object(constants, "ENDPOINT", hub.url):
        code, text = call("push", runs / "second", "org/name", "--public")
    assert code == 0
    assert f"{hub.url}/org/name" in " ".join(text.split())
    assert b"validation accuracy | 50.0% |" in hub.models["org/name"]["README.md"]
    assert not hub.private["org/name"]


def test_help_of_group_and_commands() -> None:
    for command in ([], ["list"], ["compare"], ["push"]):
        code, text = call(*command, "--help")
        assert code == 0
        assert "Examples:" in text
    result = CliRunner().invoke(main_app, ["runs", "--help"])
    assert "compare" in result.output
