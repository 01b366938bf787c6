from __future__ import annotations

import io

from rich.console import Console

from tests.support.attempts import attempt
from trainer.evaluation.run import EvalProgress


def test_where_nobody_watches_a_line_a_minute_tells_pace_and_rest() -> None:
    console, now = Console(file=io.StringIO(), width=100), [0.0]
    with EvalProgress(console, total=2_000, before=100, clock=lambda: now[0]) as progress:
        for sample in range(100):
            now[0] += 1.0
            progress.on_attempt(attempt("p", sample, float(sample % 4 == 0)))
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "episodes 100 of 2,000: starting",
        "episodes 160 of 2,000: 25.0% right, 60 a minute, 0:30:40 left",
    ]
