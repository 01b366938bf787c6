from __future__ import annotations

from trainer.quickstart.draws import training_trace
from trainer.quickstart.traces import TraceMix, held_out_problems

MARKER = "<tool_call>"
PLAIN = TraceMix(detour_share=0)
DETOURS = TraceMix(detour_share=1)


def test_training_and_held_out_problems_are_disjoint() -> None:
    held_out = {problem.text for problem in held_out_problems(1, 200)}
    trained = {training_trace(1, index, PLAIN, MARKER).problem.text for index in range(1000)}
    assert not held_out & trained


def test_trace_depends_only_on_seed_and_index() -> None:
    assert training_trace(3, 17, DETOURS, MARKER) == training_trace(3, 17, DETOURS, MARKER)
    assert training_trace(3, 17, DETOURS, MARKER) != training_trace(4, 17, DETOURS, MARKER)


def test_slip_share_is_respected() -> None:
    style = TraceMix(detour_share=0, slip_share=0.65)
    traces = [training_trace(0, index, style, MARKER) for index in range(400)]
    right = sum(f"{{{trace.problem.answer}}}" in trace.segments[-1].text for trace in traces)
    assert 0.27 < right / len(traces) < 0.44
