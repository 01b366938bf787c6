"""Progress output of training and evaluation: a bar in a terminal, lines of text elsewhere."""

# ruff: noqa: ARG002 - transformers defines the arguments of a callback

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.training.live_view import HISTORY, LiveView

LINE_EVERY_S: Final = 60.0
"""Seconds between two lines of an evaluation's progress outside a terminal."""


def _metrics_bar(console: Console, *, elapsed_when_finished: bool = False) -> Progress:
    """Return a bar whose tasks have a field ``metrics``. Draws nothing if ``console`` is not a terminal.

    Args:
        console: output.
        elapsed_when_finished: at the end, show the elapsed time instead of the remaining time.
    """
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[metrics]}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(elapsed_when_finished=elapsed_when_finished),
        console=console,
        disable=not console.is_terminal,
    )


class RunProgress(TrainerCallback):
    """Callback that shows the progress of a run. A context manager.

    In a terminal: a bar and the `LiveView`. Elsewhere: one line per step.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = _metrics_bar(console, elapsed_when_finished=True)
        self._task = self._bar.add_task("start", total=None, metrics="")
        self._view = LiveView()
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4)

    def on_group(self, kept: int, wanted: int) -> None:
        """Report a finished group: groups kept so far, and groups wanted."""
        self._show_phase("train" if kept == wanted else f"rollout {kept}/{wanted}")

    def on_validation(self, step: int) -> None:
        """Report that the validation of ``step`` starts."""
        self._show_phase(f"validation of step {step}")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._bar.update(self._task, total=state.max_steps, completed=state.global_step)
        for record in state.log_history[-HISTORY:]:
            self._view.add(record)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        text = summary(logs or {})
        if not text:
            return
        self._view.add(logs or {})
        self._bar.update(self._task, completed=state.global_step)
        if not self._console.is_terminal:
            self._console.print(f"step {state.global_step}/{state.max_steps}  {text}", highlight=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._show_phase("done")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def _show_phase(self, phase: str) -> None:
        self._bar.update(self._task, description=phase)

    def _render(self) -> RenderableType:
        return Group(self._bar.get_renderable(), self._view())


_SHOWN_METRICS = (
    ("eval_accuracy", "validation {:.1%}"),
    ("eval_delay_rate", "delay {:.0%}"),
    ("reward", "reward {:.3f}"),
    ("delay_rate", "delay {:.0%}"),
    ("groups/kept", "kept {:.0%}"),
    ("response_tokens", "{:.0f} tok"),
    ("tokens_per_second", "{:.0f} tok/s"),
    ("skipped_steps", "{:.0f} skipped"),
)


def summary(logs: dict[str, float]) -> str:
    """Return the metrics of one step as text. Missing metrics are omitted."""
    known = ((logs.get(name), template) for name, template in _SHOWN_METRICS)
    # Skipped steps are shown only if there are some.
    return "  ".join(
        template.format(v) for v, template in known if v is not None and (v or "skipped" not in template)
    )


class EvalProgress:
    """Progress of an evaluation towards ``total`` episodes. A context manager.

    Args:
        console: output.
        total: episodes of the whole evaluation.
        before: episodes finished by earlier runs.
        clock: monotonic seconds.
    """

    def __init__(
        self, console: Console, *, total: int, before: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._clock = console, clock
        self._total, self._before = total, before
        self._finished = self._correct = 0
        self._began = self._last_line = clock()
        self._bar = _metrics_bar(console)
        self._task = self._bar.add_task("episodes", total=total, completed=before, metrics="")

    def on_result(self, *, correct: bool) -> None:
        """Report a finished episode."""
        self._finished += 1
        self._correct += correct
        accuracy = f"{self._correct / self._finished:.1%} correct"
        self._bar.update(self._task, advance=1, metrics=accuracy)
        if self._console.is_terminal or self._clock() - self._last_line < LINE_EVERY_S:
            return
        self._last_line = self._clock()
        pace = (self._last_line - self._began) / self._finished
        left = timedelta(seconds=round(pace * (self._total - self._before - self._finished)))
        self._line(f"{accuracy}, {60 / pace:.0f} per minute, {left} left")

    def __enter__(self) -> Self:
        self._bar.start()
        if not self._console.is_terminal:
            self._line("starting")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def _line(self, text: str) -> None:
        done = self._before + self._finished
        self._console.print(f"episodes {done:,} of {self._total:,}: {text}", highlight=False)
