from __future__ import annotations

import io

from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from trainer.training.progress import RunProgress, summary

LOGS = {
    "reward": 0.25,
    "delay_rate": 0.5,
    "groups/kept": 0.75,
    "tokens_per_second": 1234.4,
    "skipped_steps": 0.0,
}


def test_a_step_in_words() -> None:
    assert summary(LOGS) == "reward 0.250  delay 50%  kept 75%  1234 tok/s"
    assert summary({"skipped_steps": 2.0}) == "2 skipped"
    assert summary({"train_runtime": 3.0}) == ""


def test_a_log_file_gets_a_line_a_step(tmp_path_factory: object) -> None:
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


def test_a_terminal_gets_a_bar() -> None:
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
