"""Episodes gone wrong, in the ways that a weak model goes wrong.

A checkpoint taught with them slips at the same rate, and knows how to do better: a start for reinforcement
learning with something to unlearn. A slip leaves an episode with a wrong answer in its box, but for one in a
hundred, where the wrong digit makes no difference.
"""

from __future__ import annotations

import re
from dataclasses import replace
from random import Random
from typing import Final

from trainer.quickstart.problems import Block, Problem
from trainer.quickstart.traces import Style, Trace, Writer, styled_plan

_NUMBER: Final = re.compile(r"\d{2,}")
"""The numbers that a problem gives; the constants of its plan have one digit."""


def write_slip(problem: Problem, rng: Random, style: Style, marker: str) -> Trace:
    """An episode that goes wrong: an operand miscopied, a value made up instead of asked for, or an output
    misread, about a third of the time each. Detours are not taken."""
    right = plan = styled_plan(problem, rng, style)
    if rng.random() < 1 / 3:
        plan = miscopy(plan, rng)
    writer, output = Writer(newer_python=rng.random() < 0.5), ""
    for block in plan:
        output = writer.step(block, marker)
    writer.say(problem.closing.format(f"\\boxed{{{output}}}"))
    trace = Trace(problem, tuple(writer.segments))
    if plan != right:
        return trace
    return unread(trace, rng, marker) if rng.choice((True, False)) else misread(trace, rng)


def miscopy(plan: tuple[Block, ...], rng: Random) -> tuple[Block, ...]:
    """``plan`` with one digit wrong in one number of its last flush, where no later step hangs on it.

    ``plan`` itself where that flush has no number.
    """
    runs = [index for index, block in enumerate(plan) if block.run]
    start = runs[-2] + 1 if len(runs) > 1 else 0
    places = [(i, match) for i in range(start, len(plan)) for match in _NUMBER.finditer(plan[i].code)]
    if not places:
        return plan
    index, match = rng.choice(places)
    code = plan[index].code
    wrong = code[: match.start()] + _wrong_digit(match[0], rng) + code[match.end() :]
    return (*plan[:index], replace(plan[index], code=wrong), *plan[index + 1 :])


def unread(trace: Trace, rng: Random, marker: str) -> Trace:
    """The last flush is left out and its value made up."""
    *before, asked, _, said = trace.segments
    written = asked.text.removesuffix(marker) + "\n"
    low = 10 ** (len(trace.problem.boxed.removeprefix("-")) - 1)
    closing = trace.problem.closing.format(f"\\boxed{{{rng.randrange(low, 10 * low)}}}")
    return replace(trace, segments=(*before, replace(asked, text=written), replace(said, text=closing)))


def misread(trace: Trace, rng: Random) -> Trace:
    """One digit of the answer is not the one that was shown."""
    *before, said = trace.segments
    head, box, tail = said.text.partition("\\boxed{")
    answer, brace, rest = tail.partition("}")
    text = f"{head}{box}{_wrong_digit(answer, rng)}{brace}{rest}"
    return replace(trace, segments=(*before, replace(said, text=text)))


def _wrong_digit(number: str, rng: Random) -> str:
    """``number`` with one digit, not a leading one where it has more, replaced by another."""
    digits = [i for i, c in enumerate(number) if c.isdigit()]
    place = rng.choice(digits[1:] or digits)
    other = rng.choice([d for d in "0123456789" if d != number[place]])
    return number[:place] + other + number[place + 1 :]
