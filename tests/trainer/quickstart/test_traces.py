from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, zip_longest
from random import Random

import pytest

from service.deferral.episode import delayed_calls
from service.deferral.observation import NOTHING_PENDING, TIMEOUT_TEXT, result_text
from service.deferral.scanner import BlockClosed, FenceScanner
from trainer.quickstart.problems import FAMILIES
from trainer.quickstart.traces import (
    GIVE_UP,
    NOTHING_SHOWN,
    RETRY,
    STRANGE,
    Notebook,
    Trace,
    TraceMix,
    draw_problem,
    miscopy,
    misread,
    unread,
    write_slip,
    write_trace,
)

MARKER = "<tool_call>"
PLAIN = TraceMix(detour_share=0)
DETOURS = TraceMix(detour_share=1)


@dataclass
class Counts:
    blocks: int = 0
    flushes: int = 0
    delayed: int = 0


def traces(name: str, style: TraceMix, count: int = 30) -> list[Trace]:
    return [write_trace(FAMILIES[name](Random(i)), Random(i), style, MARKER) for i in range(count)]


def observed(trace: Trace) -> list[str]:
    return [segment.text for segment in trace.segments if segment.source == "observed"]


def text(trace: Trace) -> str:
    return "".join(segment.text for segment in trace.segments)


def as_served(trace: Trace) -> Counts:
    """Return the episode that the server's scanner sees for the written text."""
    counts = Counts()
    turn = ""
    for segment in trace.segments:
        if segment.source != "observed":
            turn += segment.text
            continue
        spans = [event for event in FenceScanner(MARKER).feed(turn) if isinstance(event, BlockClosed)]
        gaps = [turn[a.end : b.start] for a, b in pairwise(spans)]
        assert turn.endswith(MARKER), "an output comes right after a marker"
        counts.blocks += len(spans)
        counts.flushes += 1
        counts.delayed += delayed_calls([span.code for span in spans], gaps)
        turn = ""
    return counts


@pytest.mark.parametrize("name", FAMILIES)
def test_every_plan_gives_its_answer(name: str) -> None:
    for trace in traces(name, PLAIN):
        assert text(trace).count(f"\\boxed{{{trace.problem.answer}}}") == 1
        assert observed(trace)[-1] == str(trace.problem.answer)
        assert as_served(trace).flushes <= 4


@pytest.mark.parametrize(("name", "delayed"), [("two_products", 2), ("larger", 2), ("leftover", 1)])
def test_delayed_blocks_count_as_delayed_calls(name: str, delayed: int) -> None:
    assert all(as_served(trace).delayed == delayed for trace in traces(name, PLAIN))


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("common_multiple", "NameError: name 'math' is not defined"),
        ("product_digits", "TypeError: 'int' object is not iterable"),
        ("multiples", TIMEOUT_TEXT),
    ],
)
def test_some_families_always_fail_first(name: str, error: str) -> None:
    for trace in traces(name, PLAIN):
        assert observed(trace)[0].startswith(error)
        assert len(observed(trace)) == 2


def test_printed_value_decides_next_step() -> None:
    first = {observed(trace)[0] for trace in traces("parity", PLAIN)}
    assert first == {"0", "1"}
    assert {observed(trace)[0] for trace in traces("larger", PLAIN)} == {"True", "False"}


def test_immediate_traces_have_no_delays() -> None:
    for trace in traces("shopping", TraceMix(immediate_share=1, detour_share=0)):
        counts = as_served(trace)
        assert (counts.blocks, counts.flushes, counts.delayed) == (3, 3, 0)


def test_detours() -> None:
    seen = set()
    for trace in traces("leftover", DETOURS, 120):
        whole = text(trace)
        if GIVE_UP in whole:
            seen.add("given up")
            assert "\\boxed" not in whole, "no answer is invented"
            assert all(output in STRANGE for output in observed(trace))
            continue
        assert f"\\boxed{{{trace.problem.answer}}}" in whole
        if RETRY in whole:
            seen.add("tried again")
        elif NOTHING_SHOWN in whole:
            seen.add("printed after all")
            assert observed(trace)[0] == ""
        else:
            seen.add("nothing pending")
            assert observed(trace)[0] == NOTHING_PENDING
            assert trace.segments[0].source == "forced"
    assert seen == {"given up", "tried again", "printed after all", "nothing pending"}


def test_families_can_be_chosen() -> None:
    assert draw_problem(Random(0), held_out=True, families=("parity",)).family == "parity"


def test_notebook_keeps_names_between_runs() -> None:
    notebook = Notebook()
    assert notebook.run("a = 6").stdout == ""
    assert notebook.run("print(a * 7)").stdout == "42\n"


def test_failed_run_keeps_names() -> None:
    notebook = Notebook()
    notebook.run("a = 1")
    failed = notebook.run("a = 2\nb = 3\nprint(a)\nc = a // 0")
    assert failed.status == "error"
    assert result_text(failed) == "ZeroDivisionError: integer division or modulo by zero"
    assert notebook.run("print(a)").stdout == "1\n"
    assert result_text(notebook.run("print(b)")) == "NameError: name 'b' is not defined"


AT_ONCE = TraceMix(immediate_share=1, detour_share=0)


def right(name: str, seed: int) -> Trace:
    return write_trace(FAMILIES[name](Random(seed)), Random(seed), PLAIN, MARKER)


def boxed(trace: Trace) -> str:
    text = trace.segments[-1].text
    assert text.count("\\boxed{") == 1
    return text.split("\\boxed{")[1].split("}")[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_slip_ends_with_boxed_and_almost_always_wrong_number(name: str) -> None:
    problems = [FAMILIES[name](Random(seed)) for seed in range(60)]
    traces = [write_slip(problem, Random(problem.text), PLAIN, MARKER) for problem in problems]
    assert all(boxed(trace).removeprefix("-").isdigit() for trace in traces)
    assert sum(boxed(trace) == str(trace.problem.answer) for trace in traces) <= 12


@pytest.mark.parametrize("name", FAMILIES)
def test_miscopy_changes_one_digit_of_last_flush(name: str) -> None:
    for seed in range(30):
        plan = FAMILIES[name](Random(seed)).plan
        wrong = miscopy(plan, Random(seed))
        changed = [
            (a, b)
            for old, new in zip(plan, wrong, strict=True)
            for a, b in zip_longest(old.code, new.code)
            if a != b
        ]
        assert len(changed) == 1
        assert all(a.isdigit() and b.isdigit() for a, b in changed)
        last_flush = max([i for i, block in enumerate(plan[:-1]) if block.run], default=-1) + 1
        assert wrong[:last_flush] == plan[:last_flush]


def test_miscopy_keeps_plan_without_number_in_last_flush() -> None:
    problem = FAMILIES["shopping"](Random(0))
    for seed in range(30):
        trace = write_slip(problem, Random(seed), AT_ONCE, MARKER)
        assert boxed(trace) != str(problem.answer)


def test_unread_drops_flush_and_invents_number_of_same_length() -> None:
    trace = right("two_products", 3)
    slip = unread(trace, Random(0), MARKER)
    text = "".join(segment.text for segment in slip.segments)
    assert MARKER not in text
    assert all(segment.source == "written" for segment in slip.segments)
    assert len(boxed(slip)) == len(trace.problem.boxed.removeprefix("-"))
    assert boxed(slip) != boxed(trace)


def test_misread_changes_one_digit() -> None:
    trace = right("product", 5)
    slip = misread(trace, Random(0))
    assert slip.segments[:-1] == trace.segments[:-1]
    assert sum(a != b for a, b in zip(boxed(slip), boxed(trace), strict=True)) == 1
