from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.engines.checkpoint import CheckpointError, verify
from trainer.training.checkpoints import (
    MAY_CHANGE,
    STATE_FILE,
    check_resumable,
    latest,
    prune,
    staged,
    write_run_state,
)
from trainer.training.config import ConfigError, TrainConfig
from trainer.training.run_files import write_atomically


def write(directory: Path, step: int) -> Path:
    final = directory / f"checkpoint-{step}"
    with staged(final) as staging:
        (staging / "model.safetensors").write_bytes(b"x" * 1000)
        (staging / "inner").mkdir()
        (staging / "inner" / "state.pt").write_bytes(b"y" * 10)
    return final


def test_checkpoint_appears_when_complete(tmp_path: Path) -> None:
    final = tmp_path / "checkpoint-1"
    with staged(final) as staging:
        (staging / "a").write_text("a")
        assert not final.exists()
        assert latest(tmp_path) is None
    assert latest(tmp_path) == final
    assert (final / "a").read_text() == "a"
    assert list(tmp_path.iterdir()) == [final]


def test_error_leaves_no_checkpoint(tmp_path: Path) -> None:
    def fail() -> None:
        with staged(tmp_path / "checkpoint-1") as staging:
            (staging / "a").write_text("a")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_latest_is_by_number(tmp_path: Path) -> None:
    for step in (9, 10, 2):
        write(tmp_path, step)
    (tmp_path / "checkpoint-99x").mkdir()
    assert latest(tmp_path) == tmp_path / "checkpoint-10"


def test_killed_process_leaves_no_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 1)
    script = (
        "import sys, time; from pathlib import Path; from trainer.training.checkpoints import staged\n"
        "with staged(Path(sys.argv[1]) / 'checkpoint-2') as staging:\n"
        "    (staging / 'model.safetensors').write_bytes(b'x' * 500)\n"
        "    print('half', flush=True)\n"
        "    time.sleep(60)\n"
    )
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, cwd=root
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    assert latest(tmp_path) == tmp_path / "checkpoint-1"
    write(tmp_path, 2)  # leftovers do not block a new attempt
    assert latest(tmp_path) == tmp_path / "checkpoint-2"
    assert not list(tmp_path.glob(".staging*"))


def test_rejects_damaged_checkpoint_by_name(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 3)
    verify(checkpoint)
    (checkpoint / "inner" / "state.pt").write_bytes(b"y")
    with pytest.raises(CheckpointError, match=r"inner/state\.pt is missing or incomplete"):
        latest(tmp_path)
    (checkpoint / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no readable manifest"):
        latest(tmp_path)


def test_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    write(tmp_path, 3)
    with pytest.raises(CheckpointError, match="exists"):
        write(tmp_path, 3)


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        write(tmp_path, step)
    (tmp_path / ".staging-checkpoint-11").mkdir()
    prune(tmp_path, keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-10"}


def test_file_is_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"model": "m", "data": ["d"], "run_dir": "runs/x", **changes})


def test_fields_that_are_newer_than_the_run_count_as_their_defaults(tmp_path: Path) -> None:
    write_run_state(tmp_path, config(), "abc", skipped_steps=0)
    path = tmp_path / STATE_FILE
    state = json.loads(path.read_text())
    del state["config"]["rewards"], state["config"]["thinking"]
    path.write_text(json.dumps(state))
    assert check_resumable(tmp_path, config(), "abc") == 0
    with pytest.raises(ConfigError, match=r"rewards is .*'exact_match'.* was started with .*'math'"):
        check_resumable(tmp_path, config(rewards=[{"name": "exact_match"}]), "abc")


def test_same_run_resumes_with_skipped_steps(tmp_path: Path) -> None:
    write_run_state(tmp_path, config(), "abc", skipped_steps=3)
    assert check_resumable(tmp_path, config(), "abc") == 3


@pytest.mark.parametrize(
    "changes", [{"steps": 400}, {"run_dir": "elsewhere"}, {"engine_slots": 3}, {"data": ["moved"]}]
)
def test_settings_without_effect_on_result_may_change(tmp_path: Path, changes: dict[str, object]) -> None:
    write_run_state(tmp_path, config(), "abc", 0)
    check_resumable(tmp_path, config(**changes), "abc")


@pytest.mark.parametrize(("changes", "message"), [
    ({"learning_rate": 1e-5}, "learning_rate is 1e-05, but the run in runs/x was started with 1e-06"),
    ({"seed": 1}, "seed is 1"),
    ({"method": "grpo-delayed"}, "method is 'grpo-delayed'"),
    ({"policy": {"max_turns": 2}}, "policy is"),
])  # fmt: skip
def test_rejects_changed_setting_by_name(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    write_run_state(tmp_path, config(), "abc", 0)
    with pytest.raises(ConfigError, match=message):
        check_resumable(tmp_path, config(**changes), "abc")


def test_rejects_other_problems(tmp_path: Path) -> None:
    write_run_state(tmp_path, config(), "abc", 0)
    with pytest.raises(ConfigError, match="data: the problems differ"):
        check_resumable(tmp_path, config(), "abd")


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"config": 3, "skipped_steps": 0}'])
def test_rejects_checkpoint_without_state(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / STATE_FILE).write_text(content)
    with pytest.raises(CheckpointError, match="no readable run_state"):
        check_resumable(tmp_path, config(), "abc")


def test_fields_that_may_change_exist() -> None:
    assert set(TrainConfig.model_fields) >= MAY_CHANGE
