from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.engines.checkpoint import CheckpointError, verify
from tests.support.run_dirs import write_checkpoint
from trainer.training.checkpoints import (
    MAY_CHANGE,
    STATE_FILE,
    check_resumable,
    find_best,
    latest,
    link_best,
    prune,
    resume_notices,
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


def test_prune_keeps_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    link_best(tmp_path / "checkpoint-2")
    prune(tmp_path, keep=1, best=tmp_path / "checkpoint-2")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-4", "best"}
    assert latest(tmp_path) == tmp_path / "checkpoint-4"
    assert (tmp_path / "best").resolve() == tmp_path / "checkpoint-2"
    verify(tmp_path / "best")


def test_link_moves_to_better_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2):
        link_best(write(tmp_path, step))
    assert (tmp_path / "best").readlink() == Path("checkpoint-2")
    assert not list(tmp_path.glob(".staging*"))


VALIDATION = {"data": ["held-out"], "every": 2, "samples": 4}


def test_directory_in_place_of_the_link_is_kept(tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    best = write(tmp_path, 1)
    link_best(best)
    assert not list(tmp_path.glob(".staging-*"))
    prune(tmp_path, keep=1, best=best)
    assert (tmp_path / "best").is_dir()


def test_prune_removes_unfinished_link(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / ".staging-best").symlink_to("checkpoint-1")
    prune(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_best_has_highest_accuracy_and_earliest_wins(tmp_path: Path) -> None:
    settings = config(validation=VALIDATION, save_every=2)
    history = [
        {"step": step, "eval_accuracy": accuracy}
        for step, accuracy in enumerate([0.9, 0.95, 0.25, 1.0, 0.75, 0.0, 0.75])
    ]
    for step in (2, 4, 6):
        write_checkpoint(tmp_path, step, history[: step + 1], settings)
    best = find_best(tmp_path / "checkpoints", settings)
    assert str(best) == "checkpoint-4, eval_accuracy 0.750"


def test_best_ignores_results_of_another_validation(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 2, [{"step": 2, "eval_accuracy": 1.0}], config(validation=VALIDATION))
    now = config(validation={**VALIDATION, "data": ["other"]})
    write_checkpoint(tmp_path, 4, [{"step": 2, "eval_accuracy": 1.0}, {"step": 4, "eval_accuracy": 0.5}], now)
    best = find_best(tmp_path / "checkpoints", now)
    assert best is not None
    assert (best.path.name, best.value) == ("checkpoint-4", 0.5)
    often = config(validation={**VALIDATION, "every": 10})
    assert str(find_best(tmp_path / "checkpoints", often)).startswith("checkpoint-2")


def test_best_without_validation_is_by_mean_reward_since_last_checkpoint(tmp_path: Path) -> None:
    settings = config(save_every=2)
    history = [{"step": i + 1, "reward": reward} for i, reward in enumerate([0.0, 0.9, 0.5, 0.6, 0.6])]
    for step in (2, 4, 5):
        write_checkpoint(tmp_path, step, history[:step], settings)
    best = find_best(tmp_path / "checkpoints", settings)
    assert best is not None
    assert (best.path.name, best.metric) == ("checkpoint-5", "reward")
    assert best.value == pytest.approx(0.6)


def test_no_checkpoint_is_best_without_results(tmp_path: Path) -> None:
    assert find_best(tmp_path, config()) is None
    write_checkpoint(tmp_path, 2, [], config())
    assert find_best(tmp_path / "checkpoints", config()) is None
    assert find_best(tmp_path / "checkpoints", config(validation=VALIDATION)) is None


@pytest.mark.parametrize(
    ("changes", "processes", "expected"),
    [
        ({}, 2, None),
        ({}, 1, "the run used 2 training processes and resumes on 1: from here on the problems are divided"),
        (
            {"steps": 400, "lr_schedule": "cosine"},
            2,
            "steps is 400, before it was 200: .* the cosine schedule",
        ),
        ({"steps": 400}, 2, None),
    ],
    ids=["same", "processes", "schedule", "constant rate"],
)
def test_notices_tell_what_changes_on_resume(
    tmp_path: Path, changes: dict[str, object], processes: int, expected: str | None
) -> None:
    write_run_state(tmp_path, config(lr_schedule=changes.get("lr_schedule", "constant")), "abc", 0, 2)
    notices = resume_notices(tmp_path, config(**changes), processes)
    assert len(notices) == (expected is not None)
    assert expected is None or re.match(expected, notices[0])


def test_no_notice_for_checkpoint_of_first_version(tmp_path: Path) -> None:
    write_run_state(tmp_path, config(), "abc", 0)
    state = json.loads((tmp_path / STATE_FILE).read_text())
    del state["processes"]
    (tmp_path / STATE_FILE).write_text(json.dumps(state))
    assert resume_notices(tmp_path, config(), 8) == []


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
    "changes",
    [{"steps": 400}, {"run_dir": "elsewhere"}, {"engine_slots": 3}, {"data": ["moved"]}, {"push_to": "a/b"}],
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


def test_rejects_other_base_model(tmp_path: Path) -> None:
    settings = config(kl_weight=0.1)
    write_run_state(tmp_path, settings, "abc", 0, base="a" * 64)
    moved = config(kl_weight=0.1, model="moved")
    assert check_resumable(tmp_path, moved, "abc", "a" * 64) == 0
    with pytest.raises(ConfigError, match=r"model: its weights differ .* runs/x .*bbbbbbbbbbbb, before aaaa"):
        check_resumable(tmp_path, settings, "abc", "b" * 64)


def test_base_model_of_earlier_versions_is_that_of_the_adapter(tmp_path: Path) -> None:
    settings = config(lora={})
    write_run_state(tmp_path, settings, "abc", 0)
    assert check_resumable(tmp_path, settings, "abc", "b" * 64) == 0
    (tmp_path / "base.json").write_text(json.dumps({"sha256": "a" * 64}))
    assert check_resumable(tmp_path, settings, "abc", "a" * 64) == 0
    with pytest.raises(ConfigError, match="model: its weights differ"):
        check_resumable(tmp_path, settings, "abc", "b" * 64)
    (tmp_path / "base.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"base\.json is not of the form"):
        check_resumable(tmp_path, settings, "abc", "a" * 64)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"config": 3, "skipped_steps": 0}'])
def test_rejects_checkpoint_without_state(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / STATE_FILE).write_text(content)
    with pytest.raises(CheckpointError, match="no readable run_state"):
        check_resumable(tmp_path, config(), "abc")


def test_fields_that_may_change_exist() -> None:
    assert set(TrainConfig.model_fields) >= MAY_CHANGE
