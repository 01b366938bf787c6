"""Random draws of training problems and traces."""

from __future__ import annotations

import re
from dataclasses import replace
from random import Random

from trainer.quickstart.conversation import (
    follow_up,
    ordinary_exchange,
    short_reply,
    system_message,
    without_code,
)
from trainer.quickstart.ordinary import ordinary
from trainer.quickstart.phrasing import dress
from trainer.quickstart.problems import HARD, PracticeProblem, everyday_question
from trainer.quickstart.problems.multi_hop import multi_hop
from trainer.quickstart.traces import Trace, TraceMix, as_content, draw_problem, write_slip, write_trace

_PLAIN = TraceMix(detour_share=0)


def training_trace(seed: int, index: int, mix: TraceMix, marker: str) -> Trace:
    """Return trace number ``index`` of ``seed``. Independent of other traces, so resuming is exact."""
    rng = Random(f"training {seed} {index}")
    if mix.slip_share > 0 and rng.random() < mix.slip_share:
        return write_slip(_family_problem(rng, held_out=False), rng, mix, marker)
    return write_trace(training_problem(rng, mix, marker, held_out=False), rng, mix, marker)


def training_problem(rng: Random, mix: TraceMix, marker: str, *, held_out: bool) -> PracticeProblem:
    """Return a problem of any kind from one side of the held-out split, sometimes with earlier turns."""
    if mix.multi_hop_share > 0 and rng.random() < mix.multi_hop_share:
        while (question := multi_hop(rng)).held_out != held_out:
            pass
        return question
    earlier: tuple[tuple[str, str], ...] = ()
    last = ""
    if rng.random() < mix.earlier_share:
        earlier, last = _earlier_turns(rng, marker)
    kind = rng.random()
    while True:
        if last and rng.random() < 0.5:
            problem = follow_up(rng, last, ())
        elif kind < mix.ordinary_share:
            problem = without_code(rng) if rng.random() < 0.12 else ordinary(rng)
        elif kind < mix.ordinary_share + mix.natural_share:
            problem = everyday_question(rng)
        else:
            problem = _family_problem(rng, held_out=held_out)
            if mix.natural_share > 0 and rng.random() < 0.3:
                text = _separated(problem.text, rng).rstrip("?.")
                return replace(problem, text=dress(text, rng), earlier=earlier)
        if problem.held_out == held_out:
            break
    system = system_message(rng) if mix.earlier_share > 0 and rng.random() < 0.06 else ""
    return replace(problem, earlier=earlier, system=system)


def _family_problem(rng: Random, *, held_out: bool) -> PracticeProblem:
    """Return a problem of a family. An extra quarter of the draws is from the hard families."""
    families = HARD if rng.random() < 0.25 else ()
    return draw_problem(rng, held_out=held_out, families=families)


def _separated(text: str, rng: Random) -> str:
    """Return ``text``, sometimes with thousands separators in its numbers."""
    if rng.random() < 0.6:
        return text
    return re.sub(r"\d{4,}", lambda match: f"{int(match[0]):,}", text)


def _earlier_turns(rng: Random, marker: str) -> tuple[tuple[tuple[str, str], ...], str]:
    """Return one or two exchanges, and the answer of the last one if it is a number, else an empty string."""
    turns: list[tuple[str, str]] = []
    last = ""
    for _ in range(rng.choice((1, 1, 1, 2))):
        if rng.random() < 0.25:
            turns.append(ordinary_exchange(rng))
            last = ""
            continue
        problem = everyday_question(rng) if rng.random() < 0.85 else draw_problem(rng, held_out=False)
        if rng.random() < 0.3:
            reply = short_reply(problem.boxed, rng)
        else:
            reply = as_content(write_trace(problem, rng, _PLAIN, marker))
        turns.append((problem.text, reply))
        last = problem.boxed
    is_number = re.fullmatch(r"-?\d{1,15}(\.\d{1,10})?", last) is not None
    return tuple(turns), last if is_number else ""
