from __future__ import annotations

import io

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from trainer.training.progress import EvalProgress, RunProgress, _metrics_bar, summary

LOGS = {
    "reward": 0.25,
    "delay_rate": 0.5,
    "groups/kept": 0.75,
    "tokens_per_second": 1234.4,
    "skipped_steps": 0.0,
}


def test_summary_of_step() -> None:
    assert summary(LOGS) == "reward 0.250  delay 50%  kept 75%  1234 tok/s"
    assert summary({"skipped_steps": 2.0}) == "2 skipped"
    assert summary({"train_runtime": 3.0}) == ""


def test_log_file_has_one_line_per_step(tmp_path_factory: object) -> None:
    console = Console(file=io.StringIO(), width=120)
    progress = RunProgress(console)
    args, control = TrainingArguments(output_dir="unused"), TrainerControl()
    state = TrainerState(global_step=3, max_steps=10)
    progress.on_train_begin(args, state, control)
    progress.on_group(1, 4)
    progress.on_log(args, state, control, logs=LOGS)
    progress.on_log(args, state, control, logs={"train_loss": 1.0})
    progress.on_train_end(args, state, control)
    assert console.file.getvalue() == f"step 3/10  {summary(LOGS)}\n"  # type: ignore[attr-defined]


def test_terminal_shows_bar() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    progress = RunProgress(console)
    args, control = TrainingArguments(output_dir="unused"), TrainerControl()
    progress.on_train_begin(args, TrainerState(global_step=0, max_steps=10), control)
    progress.on_group(2, 4)
    progress.on_log(args, TrainerState(global_step=1, max_steps=10), control, logs=LOGS)
    progress.on_train_end(args, TrainerState(global_step=1, max_steps=10), control)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1/10" in text
    assert "reward 0.250" in text


@pytest.mark.parametrize("is_terminal", [True, False])
def test_bar_is_drawn_only_in_terminal(is_terminal: bool) -> None:
    screen = io.StringIO()
    with _metrics_bar(Console(file=screen, force_terminal=is_terminal, width=100)) as bar:
        bar.add_task("rollout", total=8, completed=3, metrics="reward 0.500")
    drawn = screen.getvalue()
    assert [part in drawn for part in ("rollout", "3/8", "reward 0.500", "eta")] == [is_terminal] * 4


def test_log_file_has_one_evaluation_line_per_minute() -> None:
    console, now = Console(file=io.StringIO(), width=100), [0.0]
    with EvalProgress(console, total=2_000, before=100, clock=lambda: now[0]) as progress:
        for sample in range(100):
            now[0] += 1.0
            progress.on_result(correct=sample % 4 == 0)
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "episodes 100 of 2,000: starting",
        "episodes 160 of 2,000: 25.0% correct, 60 per minute, 0:30:40 left",
    ]
