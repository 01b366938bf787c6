from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.support.run_dirs import write_checkpoint, write_run
from trainer.runs.records import RunsError, differing_fields, display_names, find_runs, read_run
from trainer.training.checkpoints import link_best
from trainer.training.run_files import run_lock

HISTORY = [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.75, "eval_accuracy": 0.25}]


def test_state_follows_lock_and_checkpoints(tmp_path: Path) -> None:
    config = write_run(tmp_path, HISTORY, steps=4)
    with run_lock(tmp_path):
        assert read_run(tmp_path).state == "running"
    write_checkpoint(tmp_path, 2, HISTORY, config)
    assert read_run(tmp_path).state == "stopped"
    link_best(write_checkpoint(tmp_path, 4, HISTORY, config))
    run = read_run(tmp_path)
    assert (run.state, run.step, run.steps, run.best) == ("finished", 4, 4, 4)
    write_run(tmp_path, [], steps=8)
    assert read_run(tmp_path).state == "stopped"


def test_reading_does_not_block_a_start(tmp_path: Path) -> None:
    write_run(tmp_path, HISTORY)
    with run_lock(tmp_path):
        pass
    read_run(tmp_path)
    with run_lock(tmp_path):
        pass


def test_last_values_and_curves(tmp_path: Path) -> None:
    write_run(tmp_path, [*HISTORY, {"step": 3, "reward": math.nan}, {"step": 4, "reward": 1.0}])
    run = read_run(tmp_path)
    assert run.latest("eval_accuracy") == 0.25
    assert run.latest("unknown") is None
    assert run.curve("reward") == [(1, 0.5), (2, 0.75), (4, 1.0)]
    assert run.metrics() == {"reward", "eval_accuracy"}


def test_run_of_first_version_is_found_by_its_checkpoint(tmp_path: Path) -> None:
    config = write_run(tmp_path / "unused", [], steps=4)
    old = tmp_path / "runs" / "old"
    write_checkpoint(old, 4, [{"step": 4, "reward": 0.5, "groups/thin": 0.25}], config)
    (run,) = find_runs(tmp_path / "runs")
    assert (run.path, run.recipe_name, run.started_at) == (old, None, None)
    assert (run.state, run.best, run.recipe["method"]) == ("finished", None, "ih-grpo")
    assert run.latest("groups/too_few_valid") == 0.25


def test_runs_are_found_in_subdirectories_and_nothing_else_is(tmp_path: Path) -> None:
    for name in ("b", "group/a", "group/.hidden", "1/2/3/too-deep"):
        (tmp_path / name).mkdir(parents=True)
        write_run(tmp_path / name, [])
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "warm-start" / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    (tmp_path / "warm-start" / "checkpoints" / "checkpoint-3" / "run_state.json").write_text("{}")
    assert [run.path.relative_to(tmp_path).as_posix() for run in find_runs(tmp_path)] == ["b", "group/a"]
    assert [run.path for run in find_runs(tmp_path / "b")] == [tmp_path / "b"]


def test_directories_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(RunsError, match=r"is not a training run: it has no run.json and no checkpoint"):
        read_run(tmp_path)
    with pytest.raises(RunsError, match="does not exist: start a run"):
        find_runs(tmp_path / "missing")
    (tmp_path / "run.json").write_text(json.dumps({"recipe": 3}))
    with pytest.raises(RunsError):
        read_run(tmp_path)


def test_fields_that_differ(tmp_path: Path) -> None:
    for name, rate in (("a", 1e-5), ("b", 1e-6)):
        (tmp_path / name).mkdir()
        write_run(tmp_path / name, [], learning_rate=rate)
    runs = find_runs(tmp_path)
    assert differing_fields(runs) == {"learning_rate": [1e-5, 1e-6]}
    assert differing_fields(runs[:1]) == {}


def test_names_are_paths_if_they_repeat(tmp_path: Path) -> None:
    for name in ("x/run", "y/run"):
        (tmp_path / name).mkdir(parents=True)
        write_run(tmp_path / name, [])
    runs = find_runs(tmp_path)
    assert display_names(runs) == [str(tmp_path / "x" / "run"), str(tmp_path / "y" / "run")]
    assert display_names(runs[:1]) == ["run"]
