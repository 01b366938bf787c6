"""What a person sees of a run: a bar with the figures that matter, or a line a step where nobody watches.

The bar of whatever takes hours: what it does, how far it is, its figures, the time gone and left.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


def figures_bar(console: Console, *, elapsed_when_finished: bool = False) -> Progress:
    """A bar whose tasks have a field ``figures``; nothing is drawn where ``console`` is no terminal.

    Args:
        console: where it goes.
        elapsed_when_finished: at the end the time that it took stands where the time left was.
    """
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(elapsed_when_finished=elapsed_when_finished),
        console=console,
        disable=not console.is_terminal,
    )


# ruff: noqa: ARG002 - transformers names the arguments of a callback


class RunProgress(TrainerCallback):
    """Shows steps, reward, delay rate, tokens a second and the time left, on ``console``."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = figures_bar(console, elapsed_when_finished=True)
        self._task = self._bar.add_task("start", total=None, figures="")

    def on_group(self, kept: int, wanted: int) -> None:
        """A group of the rollout is done."""
        phase = "train" if kept == wanted else f"rollout {kept}/{wanted}"
        self._bar.update(self._task, description=phase)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._bar.update(self._task, total=state.max_steps, completed=state.global_step)
        self._bar.start()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        figures = summary(logs or {})
        if not figures:
            return
        self._bar.update(self._task, completed=state.global_step, figures=figures)
        if not self._console.is_terminal:
            self._console.print(f"step {state.global_step}/{state.max_steps}  {figures}", highlight=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._bar.update(self._task, description="done")
        self._bar.stop()


_FIGURES = (
    ("reward", "reward {:.3f}"),
    ("delay_rate", "delay {:.0%}"),
    ("groups/kept", "kept {:.0%}"),
    ("response_tokens", "{:.0f} tok"),
    ("tokens_per_second", "{:.0f} tok/s"),
    ("skipped_steps", "{:.0f} skipped"),
)


def summary(logs: dict[str, float]) -> str:
    """The figures of one step, in words; what a step has not is left out."""
    known = ((logs.get(name), template) for name, template in _FIGURES)
    # A count of skipped steps is worth a word only when there are some.
    return "  ".join(
        template.format(v) for v, template in known if v is not None and (v or "skipped" not in template)
    )
