"""Episodes written down: what a model that has learned the protocol would write and read for a problem.

A trace is the plan of a problem run for real. To be ready for what a server may answer, a few traces take a
detour: a run fails for a reason that the code does not explain, prints nothing, or had nothing to run.

Runs the code of our own traces in this process, with the outcome a sandbox would give.

Only for code that `trainer.quickstart.problems` wrote: it is `exec`, and no isolation at all. What a model
writes runs in a sandbox.

Episodes gone wrong, in the ways that a weak model goes wrong.

A checkpoint taught with them slips at the same rate, and knows how to do better: a start for reinforcement
learning with something to unlearn. A slip leaves an episode with a wrong answer in its box, but for one in a
hundred, where the wrong digit makes no difference.
"""

from __future__ import annotations

import contextlib
import io
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final, Literal

from service.deferral.observation import NOTHING_PENDING, TIMEOUT_TEXT, result_text
from service.sandbox.base import ExecutionResult
from trainer.quickstart.problems import FAMILIES, PlanBlock, PracticeProblem


class Notebook:
    """One namespace. A script that fails leaves it as it was."""

    def __init__(self) -> None:
        self._names: dict[str, Any] = {}

    def run(self, code: str) -> ExecutionResult:
        names = dict(self._names)
        stdout, stderr = io.StringIO(), ""
        try:
            with contextlib.redirect_stdout(stdout):
                exec(code, names)  # noqa: S102 (see the module's docstring)
        except Exception as error:
            stderr = "".join(traceback.format_exception(error))
        else:
            self._names = names
        return ExecutionResult(
            stdout=stdout.getvalue(),
            stderr=stderr,
            status="error" if stderr else "ok",
            wall_seconds=0.0,
            waited_seconds=0.0,
        )


Source = Literal["written", "observed", "forced"]
"""``written`` by the model (it learns this), ``observed`` (the output of a flush), or ``forced``: the model's
own text, a slip that it must know how to go on from but not learn to make."""

# Output that has nothing to do with the code: the hint is to try once more, then to stop.
STRANGE: Final = (
    TIMEOUT_TEXT,
    "SandboxError: the sandbox failed; all variables are lost",
    "MemoryError: the memory limit was reached",
    "RecursionError: maximum recursion depth exceeded",
    "OSError: [Errno 28] No space left on device",
    "the interpreter was killed by signal 9",
)
RETRY: Final = "That run failed, so I try once more with all the code."
GIVE_UP: Final = "It failed again. No value was shown, so I can give no answer."
NOTHING_SHOWN: Final = "Nothing was shown, so I print it."


@dataclass(frozen=True, slots=True)
class Segment:
    text: str
    source: Source


@dataclass(frozen=True, slots=True)
class Trace:
    problem: PracticeProblem
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class TraceMix:
    """The mix of traces."""

    immediate_share: float = 0.0
    """Share of traces in which every block is run at once, so that a later stage can learn to delay."""
    detour_share: float = 0.06
    """Share of traces with an output that the code does not explain."""
    slip_share: float = 0.0
    """Share of traces that end with a wrong answer."""
    natural_share: float = 0.0
    """Share of everyday questions; the rest are the families of `FAMILIES`."""
    ordinary_share: float = 0.0
    """Share of texts that are not arithmetic, which get the honest reply."""
    earlier_share: float = 0.0
    """Share of traces with earlier turns in the conversation."""


Detour = Literal["none", "strange", "hopeless", "silent", "nothing pending"]


class Writer:
    """Collects the segments of one episode and runs its code."""

    def __init__(self, *, newer_python: bool) -> None:
        self._newer_python = newer_python
        self.segments: list[Segment] = []
        self.pending: list[str] = []
        self.done: list[str] = []
        self._notebook = Notebook()

    def block(self, reason: str, code: str, marker: str, source: Source = "written") -> None:
        self._add(f"{reason}\n```python\n{code}\n```{marker or chr(10)}", source)
        self.pending.append(code)

    def step(self, block: PlanBlock, marker: str) -> str:
        """Write a block down, and run what is pending where the plan says so."""
        self.block(block.reason, block.code, marker if block.run else "")
        if block.times_out:
            self.observe(TIMEOUT_TEXT)
            return TIMEOUT_TEXT
        return self.flush() if block.run else ""

    def flush(self) -> str:
        """Run what is pending and write the output down."""
        script = "\n".join(self.pending)
        result = self._notebook.run(script)
        if result.status == "ok":
            self.done += self.pending
        output = result_text(result)
        if self._newer_python and output.startswith("NameError"):
            # Python 3.12 and later end the line with a hint where the name is one of the standard library's.
            output = output.split(". Did you")[0] + ". Did you forget to import 'math'?"
        self.observe(output)
        return output

    def observe(self, output: str) -> None:
        self.pending.clear()
        self._add(output, "observed")

    def say(self, text: str) -> None:
        self._add(text, "written")

    def force(self, text: str) -> None:
        self._add(text, "forced")

    def _add(self, text: str, source: Source) -> None:
        self.segments.append(Segment(text, source))


def write_trace(problem: PracticeProblem, rng: Random, mix: TraceMix, marker: str) -> Trace:
    """The episode that solves ``problem``.

    Raises:
        AssertionError: the plan does not lead to the answer.
    """
    if not problem.plan:
        return Trace(problem, (Segment(problem.closing, "written"),))
    plan = plan_for_mix(problem, rng, mix)
    detour: Detour = "none"
    if rng.random() < mix.detour_share:
        detour = rng.choice(("strange", "hopeless", "silent", "nothing pending"))
    writer, output = Writer(newer_python=rng.random() < 0.5), ""
    if detour == "nothing pending":
        writer.force(marker)
        writer.observe(NOTHING_PENDING)
    for block in plan:
        last = block is plan[-1]
        if last and detour == "silent":
            output = _silent(writer, block, marker)
        elif last and detour in ("strange", "hopeless"):
            output = _strange(writer, block, rng, marker, hopeless=detour == "hopeless")
            if detour == "hopeless":
                writer.say(GIVE_UP)
                return Trace(problem, tuple(writer.segments))
        else:
            output = writer.step(block, marker) or output
    if output != str(problem.answer):
        raise AssertionError(f"{problem.family}: the plan gives {output}, the answer is {problem.answer}")
    writer.say(problem.closing.format(f"\\boxed{{{problem.boxed}}}"))
    return Trace(problem, tuple(writer.segments))


def as_content(trace: Trace) -> str:
    """The episode as a server returns it, and as a client sends it back in the next request."""
    return "".join(
        f"\nCode execution result: {segment.text}\n</tool_call>\n"
        if segment.source == "observed"
        else segment.text
        for segment in trace.segments
    )


def plan_for_mix(problem: PracticeProblem, rng: Random, mix: TraceMix) -> tuple[PlanBlock, ...]:
    """The problem's plan, or the same with every block run at once."""
    if rng.random() < mix.immediate_share:
        return tuple(at_once(block) for block in problem.plan)
    return problem.plan


def at_once(block: PlanBlock) -> PlanBlock:
    """``block`` run where it stands, with its value printed."""
    if block.run:
        return block
    return replace(block, code=f"{block.code}\nprint({block.name})", run=True)


def _silent(writer: Writer, block: PlanBlock, marker: str) -> str:
    """The print was forgotten: the value is kept in a name and printed after all."""
    value = block.code.rsplit("print(", 1)[1].removesuffix(")")
    code = block.code.removesuffix(f"print({value})") + f"r = {value}"
    writer.block(block.reason, code, marker, "forced")
    writer.flush()
    writer.block(NOTHING_SHOWN, "print(r)", marker)
    return writer.flush()


def _strange(writer: Writer, block: PlanBlock, rng: Random, marker: str, *, hopeless: bool) -> str:
    """The run fails for no reason in the code, so all of it is tried once more; in vain if ``hopeless``."""
    writer.block(block.reason, block.code, marker)
    # The prints of earlier flushes would come out again.
    kept = [line for code in (*writer.done, *writer.pending[:-1]) for line in code.splitlines()]
    script = "\n".join([*(line for line in kept if not line.startswith("print(")), block.code])
    writer.observe(rng.choice(STRANGE))
    writer.block(RETRY, script, marker)
    if hopeless:
        writer.observe(rng.choice(STRANGE))
        return ""
    return writer.flush()


def draw_problem(rng: Random, *, held_out: bool, families: tuple[str, ...] = ()) -> PracticeProblem:
    """A problem of a random family, from the one or the other side of the split."""
    names = families or tuple(FAMILIES)
    while True:
        problem = FAMILIES[rng.choice(names)](rng)
        if problem.held_out == held_out:
            return problem


def held_out_problems(seed: int, count: int, families: tuple[str, ...] = ()) -> Iterator[PracticeProblem]:
    """The ``count`` held-out problems of ``seed``."""
    for index in range(count):
        rng = Random(f"held-out {seed} {index}")
        yield draw_problem(rng, held_out=True, families=families)


_NUMBER: Final = re.compile(r"\d{2,}")
"""The numbers that a problem gives; the constants of its plan have one digit."""


def write_slip(problem: PracticeProblem, rng: Random, mix: TraceMix, marker: str) -> Trace:
    """An episode that goes wrong: an operand miscopied, a value made up instead of request for, or an output
    misread, about a third of the time each. Detours are not taken."""
    right = plan = plan_for_mix(problem, rng, mix)
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


def miscopy(plan: tuple[PlanBlock, ...], rng: Random) -> tuple[PlanBlock, ...]:
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
    *before, request, _, final = trace.segments
    written = request.text.removesuffix(marker) + "\n"
    low = 10 ** (len(trace.problem.boxed.removeprefix("-")) - 1)
    closing = trace.problem.closing.format(f"\\boxed{{{rng.randrange(low, 10 * low)}}}")
    return replace(trace, segments=(*before, replace(request, text=written), replace(final, text=closing)))


def misread(trace: Trace, rng: Random) -> Trace:
    """One digit of the answer is not the one that was shown."""
    *before, final = trace.segments
    head, box, tail = final.text.partition("\\boxed{")
    answer, brace, rest = tail.partition("}")
    text = f"{head}{box}{_wrong_digit(answer, rng)}{brace}{rest}"
    return replace(trace, segments=(*before, replace(final, text=text)))


def _wrong_digit(number: str, rng: Random) -> str:
    """``number`` with one digit, not a leading one where it has more, replaced by another."""
    digits = [i for i, c in enumerate(number) if c.isdigit()]
    place = rng.choice(digits[1:] or digits)
    other = rng.choice([d for d in "0123456789" if d != number[place]])
    return number[:place] + other + number[place + 1 :]
