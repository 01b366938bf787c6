"""Which episode is shown at which place of a run."""

from __future__ import annotations

from random import Random

from trainer.quickstart.problems import HARD
from trainer.quickstart.slips import write_slip
from trainer.quickstart.traces import Style, Trace, draw_problem, write_trace


def training_trace(seed: int, index: int, style: Style, marker: str) -> Trace:
    """Trace number ``index`` of ``seed``: each can be made alone, so a run that is resumed goes on exactly.

    A quarter more of them are of the families that are hard to learn.
    """
    rng = Random(f"training {seed} {index}")  # noqa: S311
    families = HARD if rng.random() < 0.25 else ()
    problem = draw_problem(rng, held_out=False, families=families)
    slips = style.slip_share > 0 and rng.random() < style.slip_share
    return (write_slip if slips else write_trace)(problem, rng, style, marker)
