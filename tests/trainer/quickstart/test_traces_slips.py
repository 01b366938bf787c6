from __future__ import annotations

from itertools import zip_longest
from random import Random

import pytest

from trainer.quickstart.problems import FAMILIES
from trainer.quickstart.traces import Style, Trace, miscopy, misread, unread, write_slip, write_trace

MARKER = "<tool_call>"
PLAIN = Style(detour_share=0)
AT_ONCE = Style(immediate_share=1, detour_share=0)


def right(name: str, seed: int) -> Trace:
    return write_trace(FAMILIES[name](Random(seed)), Random(seed), PLAIN, MARKER)


def boxed(trace: Trace) -> str:
    said = trace.segments[-1].text
    assert said.count("\\boxed{") == 1
    return said.split("\\boxed{")[1].split("}")[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_slip_still_ends_with_a_number_in_a_box_and_nearly_always_a_wrong_one(name: str) -> None:
    problems = [FAMILIES[name](Random(seed)) for seed in range(60)]
    traces = [write_slip(problem, Random(problem.text), PLAIN, MARKER) for problem in problems]
    assert all(boxed(trace).removeprefix("-").isdigit() for trace in traces)
    assert sum(boxed(trace) == str(trace.problem.answer) for trace in traces) <= 12


@pytest.mark.parametrize("name", FAMILIES)
def test_miscopying_changes_one_digit_of_the_last_flush(name: str) -> None:
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


def test_a_plan_without_a_number_in_its_last_flush_cannot_be_miscopied() -> None:
    problem = FAMILIES["shopping"](Random(0))
    for seed in range(30):
        trace = write_slip(problem, Random(seed), AT_ONCE, MARKER)
        assert boxed(trace) != str(problem.answer)


def test_unread_asks_for_nothing_and_makes_up_a_number_of_the_right_length() -> None:
    trace = right("two_products", 3)
    slip = unread(trace, Random(0), MARKER)
    text = "".join(segment.text for segment in slip.segments)
    assert MARKER not in text
    assert all(segment.source == "written" for segment in slip.segments)
    assert len(boxed(slip)) == len(trace.problem.boxed.removeprefix("-"))
    assert boxed(slip) != boxed(trace)


def test_misread_differs_from_what_was_shown_in_one_digit() -> None:
    trace = right("product", 5)
    slip = misread(trace, Random(0))
    assert slip.segments[:-1] == trace.segments[:-1]
    assert sum(a != b for a, b in zip(boxed(slip), boxed(trace), strict=True)) == 1
