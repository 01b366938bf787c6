from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.run_dirs import write_checkpoint, write_run
from trainer.training.run_info import (
    METRICS_FILE,
    MetricsFile,
    checkpoint_steps,
    read_history,
    read_info,
    write_info,
)


def test_restart_keeps_start_and_wandb_id(tmp_path: Path) -> None:
    config = write_run(tmp_path, [])
    first = read_info(tmp_path)
    second = write_info(config.model_copy(update={"steps": 9}), 2, "other")
    assert first is not None
    assert (second.started_at, second.wandb_id) == (first.started_at, first.wandb_id)
    assert (second.processes, second.recipe["steps"], second.recipe_name) == (2, 9, "other")
    assert read_info(tmp_path) == second


def test_runs_have_different_wandb_ids(tmp_path: Path) -> None:
    ids = set()
    for name in "ab":
        (tmp_path / name).mkdir()
        write_run(tmp_path / name, [])
        info = read_info(tmp_path / name)
        assert info is not None
        ids.add(info.wandb_id)
    assert len(ids) == 2


@pytest.mark.parametrize("content", [None, "", "{}", "[1]"])
def test_missing_or_damaged_info(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    assert read_info(tmp_path) is None


def test_records_of_a_step_are_merged_and_half_a_line_is_ignored(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path)
    file.append(0, {"eval_accuracy": 0.25})
    file.append(1, {"reward": 0.5, "note": "text"})  # type: ignore[dict-item]
    file.append(1, {"eval_accuracy": 0.75})
    with (tmp_path / METRICS_FILE).open("a") as raw:
        raw.write('{"step": 2, "rew')
    assert read_history(tmp_path) == [
        {"step": 0, "eval_accuracy": 0.25},
        {"step": 1, "reward": 0.5, "eval_accuracy": 0.75},
    ]


def test_truncate_removes_later_steps(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path)
    for step in range(5):
        file.append(step, {"reward": step})
    file.truncate(2)
    assert [record["step"] for record in file.read()] == [0, 1, 2]
    MetricsFile(tmp_path / "new").truncate(0)
    assert (tmp_path / "new" / METRICS_FILE).read_text() == ""


def test_run_of_first_version_is_read_from_checkpoint_with_todays_names(tmp_path: Path) -> None:
    config = write_run(tmp_path / "unused", [])
    history = [{"step": 1, "reward": 0.5, "groups/thin": 0.1, "groups/no_signal": 0.2}]
    write_checkpoint(tmp_path, 2, [], config)
    write_checkpoint(tmp_path, 10, history, config)
    assert checkpoint_steps(tmp_path) == [2, 10]
    assert read_history(tmp_path) == [
        {"step": 1, "reward": 0.5, "groups/too_few_valid": 0.1, "groups/zero_std": 0.2}
    ]
    (tmp_path / METRICS_FILE).write_text(json.dumps({"step": 1, "groups/thin": 0.3}) + "\n")
    assert read_history(tmp_path) == [{"step": 1, "groups/too_few_valid": 0.3}]
