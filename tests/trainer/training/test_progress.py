from __future__ import annotations

import io
import re

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


def play(console: Console, *events: tuple[int, dict[str, float]], history: object = ()) -> str:
    """Show a run that logs ``events``: step and metrics. Returns what was written."""
    args, control = TrainingArguments(output_dir="unused"), TrainerControl()
    state = TrainerState(global_step=0, max_steps=10)
    state.log_history = list(history)  # type: ignore[call-overload]
    with RunProgress(console) as progress:
        progress.on_train_begin(args, state, control)
        progress.on_validation(0)
        progress.on_group(2, 4)
        for step, logs in events:
            progress.on_log(args, TrainerState(global_step=step, max_steps=10), control, logs=logs)
        progress.on_train_end(args, state, control)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_log_file_has_one_line_per_step() -> None:
    text = play(
        Console(file=io.StringIO(), width=120),
        (3, LOGS),
        (3, {"train_loss": 1.0}),
        (4, {"eval_accuracy": 0.5}),
    )
    assert text == f"step 3/10  {summary(LOGS)}\nstep 4/10  validation 50.0%\n"


def test_terminal_shows_bar_and_curves() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    text = play(console, (1, LOGS), history=[{"step": 0, "reward": 0.125}])
    assert "1/10" in text
    assert "done" in text
    assert re.search(r"reward +0\.250 +▁█", text)


def test_view_stops_after_error() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None)
    with pytest.raises(RuntimeError, match="engine"), RunProgress(console):
        raise RuntimeError("engine")
    console.file.truncate(0)
    with RunProgress(console):  # a console has at most one live view
        pass


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
