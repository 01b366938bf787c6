"""Training traces: the text of an episode as a model that knows the protocol would write and read it.

A trace is the plan of a problem with the real outputs of its code. The code is run with `exec` in this
process without isolation: it comes only from `trainer.quickstart.problems`. Code of models runs in a sandbox.

A few traces have a detour, to prepare the model for what a server may return: a run fails for a reason
outside the code, prints nothing, or has nothing to run.

Slips are traces with a mistake of a weak model. A checkpoint trained on them makes mistakes at the same rate
but also knows the correct way, so it is a starting point for reinforcement learning. A slip almost always
ends with a wrong boxed answer; in one of a hundred the wrong digit makes no difference.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from types import ModuleType
from typing import Any, Final, Literal

from service.deferral.observation import NOTHING_PENDING, TIMEOUT_TEXT, result_text
from service.sandbox.base import ExecutionResult
from trainer.environments.multi_hop import search
from trainer.quickstart.problems import FAMILIES, PlanBlock, PracticeProblem


class _Function:
    """A function in the form in which sandboxed code sees a tool."""

    def __init__(self, run: Callable[..., object]) -> None:
        self._run = run

    def __call__(self, *arguments: object) -> object:
        return self._run(*arguments)

    def bind(self, *arguments: object) -> Callable[[], object]:
        return partial(self._run, *arguments)


def _gather(*calls: Callable[[], object]) -> list[object]:
    return [call() for call in calls]


_TOOLS: Final = ModuleType("tools")
"""The module ``tools`` of the sandbox, for plans with searches."""
_TOOLS.__dict__.update(search=_Function(search), gather=_gather)


def _import(name: str, *arguments: Any) -> Any:
    return _TOOLS if name == "tools" else __import__(name, *arguments)


class Notebook:
    """A namespace in which scripts run. A script that fails does not change it."""

    def __init__(self) -> None:
        self._names: dict[str, Any] = {"__builtins__": {**vars(builtins), "__import__": _import}}

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
"""``written``: text of the model, which it learns. ``observed``: output of a flush. ``forced``: text of the
model
that it must be able to continue from but should not learn to write."""

# Outputs that the code does not cause. The model retries once, then stops.
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
    """A part of a trace with one source."""

    text: str
    source: Source


@dataclass(frozen=True, slots=True)
class Trace:
    """A problem and the text of its episode."""

    problem: PracticeProblem
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class TraceMix:
    """Shares of the kinds of traces."""

    immediate_share: float = 0.0
    """Share of traces that run every block immediately, so that a later stage can learn to delay."""
    detour_share: float = 0.06
    """Share of traces with an output that the code does not explain."""
    slip_share: float = 0.0
    """Share of traces that end with a wrong answer."""
    natural_share: float = 0.0
    """Share of everyday questions. The rest are problems of `FAMILIES`."""
    ordinary_share: float = 0.0
    """Share of texts that are not arithmetic, with the honest reply."""
    earlier_share: float = 0.0
    """Share of traces with earlier turns in the conversation."""
    multi_hop_share: float = 0.0
    """Share of questions that need searches."""


Detour = Literal["none", "strange", "hopeless", "silent", "nothing pending"]


class Writer:
    """Builder of a trace: collects its segments and runs its code."""

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
        """Add a block of the plan, and flush if it has to run. Return the output, or an empty string."""
        self.block(block.reason, block.code, marker if block.run else "")
        if block.times_out:
            self.observe(TIMEOUT_TEXT)
            return TIMEOUT_TEXT
        return self.flush() if block.run else ""

    def flush(self) -> str:
        """Run the pending blocks and add their output."""
        script = "\n".join(self.pending)
        result = self._notebook.run(script)
        if result.status == "ok":
            self.done += self.pending
        output = result_text(result)
        if self._newer_python and output.startswith("NameError"):
            # Python 3.12 and later add a hint if the name is a standard-library module.
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
    """Return a trace that solves ``problem``.

    Raises:
        AssertionError: the plan does not give the answer.
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
    """Return the trace as message content, as a server returns it and a client sends it back."""
    return "".join(
        f"\nCode execution result: {segment.text}\n</tool_call>\n"
        if segment.source == "observed"
        else segment.text
        for segment in trace.segments
    )


def plan_for_mix(problem: PracticeProblem, rng: Random, mix: TraceMix) -> tuple[PlanBlock, ...]:
    """Return the problem's plan, or the plan with every block run immediately."""
    if rng.random() < mix.immediate_share:
        return tuple(immediate(block) for block in problem.plan)
    return problem.plan


def immediate(block: PlanBlock) -> PlanBlock:
    """Return ``block`` changed to run immediately and print its value."""
    if block.run:
        return block
    return replace(block, code=f"{block.code}\nprint({block.name})", run=True)


def _silent(writer: Writer, block: PlanBlock, marker: str) -> str:
    """Write a block without its print, then a block that prints the value."""
    value = block.code.rsplit("print(", 1)[1].removesuffix(")")
    code = block.code.removesuffix(f"print({value})") + f"r = {value}"
    writer.block(block.reason, code, marker, "forced")
    writer.flush()
    writer.block(NOTHING_SHOWN, "print(r)", marker)
    return writer.flush()


def _strange(writer: Writer, block: PlanBlock, rng: Random, marker: str, *, hopeless: bool) -> str:
    """Write a run that fails for a reason outside the code, and a retry, which fails too if ``hopeless``."""
    writer.block(block.reason, block.code, marker)
    # Without the prints of earlier flushes, which would appear again.
    kept = [line for code in (*writer.done, *writer.pending[:-1]) for line in code.splitlines()]
    script = "\n".join([*(line for line in kept if not line.startswith("print(")), block.code])
    writer.observe(rng.choice(STRANGE))
    writer.block(RETRY, script, marker)
    if hopeless:
        writer.observe(rng.choice(STRANGE))
        return ""
    return writer.flush()


def draw_problem(rng: Random, *, held_out: bool, families: tuple[str, ...] = ()) -> PracticeProblem:
    """Return a problem of a random family from one side of the held-out split."""
    names = families or tuple(FAMILIES)
    while True:
        problem = FAMILIES[rng.choice(names)](rng)
        if problem.held_out == held_out:
            return problem


def held_out_problems(seed: int, count: int, families: tuple[str, ...] = ()) -> Iterator[PracticeProblem]:
    """Yield the ``count`` held-out problems of ``seed``."""
    for index in range(count):
        rng = Random(f"held-out {seed} {index}")
        yield draw_problem(rng, held_out=True, families=families)


_NUMBER: Final = re.compile(r"\d{2,}")
"""Numbers of a problem. The constants of plans have one digit."""


def write_slip(problem: PracticeProblem, rng: Random, mix: TraceMix, marker: str) -> Trace:
    """Return a trace with a mistake: a miscopied operand, an invented value or a misread output.

    Each kind has a probability of about a third. There are no detours.
    """
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
    """Return ``plan`` with one wrong digit in a number of its last flush, on which no later step depends.

    Returns ``plan`` unchanged if that flush has no number.
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
    """Return ``trace`` without its last flush and with an invented value."""
    *before, request, _, final = trace.segments
    written = request.text.removesuffix(marker) + "\n"
    low = 10 ** (len(trace.problem.boxed.removeprefix("-")) - 1)
    closing = trace.problem.closing.format(f"\\boxed{{{rng.randrange(low, 10 * low)}}}")
    return replace(trace, segments=(*before, replace(request, text=written), replace(final, text=closing)))


def misread(trace: Trace, rng: Random) -> Trace:
    """Return ``trace`` with one wrong digit in its answer."""
    *before, final = trace.segments
    head, box, tail = final.text.partition("\\boxed{")
    answer, brace, rest = tail.partition("}")
    text = f"{head}{box}{_wrong_digit(answer, rng)}{brace}{rest}"
    return replace(trace, segments=(*before, replace(final, text=text)))


def _wrong_digit(number: str, rng: Random) -> str:
    """Return ``number`` with one digit replaced, not the first one if there are others."""
    digits = [i for i, c in enumerate(number) if c.isdigit()]
    place = rng.choice(digits[1:] or digits)
    other = rng.choice([d for d in "0123456789" if d != number[place]])
    return number[:place] + other + number[place + 1 :]
