"""What a person sees of an evaluation: a bar, or a line now and then where nobody watches."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

from rich.console import Console

from trainer.attempts import Attempt
from trainer.bar import figures_bar

LINE_EVERY_S: Final = 60.0


class EvalProgress:
    """Counts attempts towards ``total``. A context manager.

    Args:
        console: where it goes.
        total: attempts that the evaluation is made of.
        before: of these, how many were made by an earlier start.
        clock: seconds.
    """

    def __init__(
        self, console: Console, *, total: int, before: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._clock = console, clock
        self._total, self._before = total, before
        self._made = self._right = 0
        self._began = self._last_line = clock()
        self._bar = figures_bar(console)
        self._task = self._bar.add_task("episodes", total=total, completed=before, figures="")

    def on_attempt(self, attempt: Attempt) -> None:
        """One more was made."""
        self._made += 1
        self._right += attempt.reward > 0
        right = f"{self._right / self._made:.1%} right"
        self._bar.update(self._task, advance=1, figures=right)
        if self._console.is_terminal or self._clock() - self._last_line < LINE_EVERY_S:
            return
        self._last_line = self._clock()
        pace = (self._last_line - self._began) / self._made
        left = timedelta(seconds=round(pace * (self._total - self._before - self._made)))
        self._line(f"{right}, {60 / pace:.0f} a minute, {left} left")

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
        done = self._before + self._made
        self._console.print(f"episodes {done:,} of {self._total:,}: {text}", highlight=False)
