from __future__ import annotations

from pathlib import Path

import pytest

from service.engines.checkpoint import CheckpointError
from trainer.training.checkpoints import MAY_CHANGE, STATE_FILE, check_resumable, write_state
from trainer.training.config import ConfigError, TrainConfig


def config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"model": "m", "data": ["d"], "run_dir": "runs/x", **changes})


def test_the_same_run_goes_on_and_keeps_its_count_of_skipped_steps(tmp_path: Path) -> None:
    write_state(tmp_path, config(), "abc", skipped_steps=3)
    assert check_resumable(tmp_path, config(), "abc") == 3


@pytest.mark.parametrize(
    "changes", [{"steps": 400}, {"run_dir": "elsewhere"}, {"engine_slots": 3}, {"data": ["moved"]}]
)
def test_what_does_not_change_the_result_may_change(tmp_path: Path, changes: dict[str, object]) -> None:
    write_state(tmp_path, config(), "abc", 0)
    check_resumable(tmp_path, config(**changes), "abc")


@pytest.mark.parametrize(("changes", "message"), [
    ({"learning_rate": 1e-5}, "learning_rate is 1e-05, but the run in runs/x was started with 1e-06"),
    ({"seed": 1}, "seed is 1"),
    ({"method": "grpo-delayed"}, "method is 'grpo-delayed'"),
    ({"policy": {"max_turns": 2}}, "policy is"),
])  # fmt: skip
def test_what_does_is_refused_by_name(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    write_state(tmp_path, config(), "abc", 0)
    with pytest.raises(ConfigError, match=message):
        check_resumable(tmp_path, config(**changes), "abc")


def test_other_problems_are_refused(tmp_path: Path) -> None:
    write_state(tmp_path, config(), "abc", 0)
    with pytest.raises(ConfigError, match="data: the problems differ"):
        check_resumable(tmp_path, config(), "abd")


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"config": 3, "skipped_steps": 0}'])
def test_a_checkpoint_without_its_state_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / STATE_FILE).write_text(content)
    with pytest.raises(CheckpointError, match="no readable run_state"):
        check_resumable(tmp_path, config(), "abc")


def test_the_fields_that_may_change_exist() -> None:
    assert set(TrainConfig.model_fields) >= MAY_CHANGE
