from __future__ import annotations

from random import Random

from trainer.quickstart.conversation import follow_up, without_code
from trainer.quickstart.draws import training_problem, training_trace
from trainer.quickstart.ordinary import HONEST_REPLY
from trainer.quickstart.traces import TraceMix, write_trace

MARKER = "<tool_call>"
STYLE = TraceMix(detour_share=0, natural_share=0.5, ordinary_share=0.3, earlier_share=1.0)


def test_follow_up_uses_last_answer() -> None:
    for seed in range(300):
        for last in ("117", "-5", "2.5"):
            problem = follow_up(Random(seed), last, ())
            assert last in problem.plan[0].code
            write_trace(problem, Random(seed), TraceMix(detour_share=0), MARKER)


def test_earlier_turns_have_client_format() -> None:
    problems = [training_problem(Random(seed), STYLE, MARKER, held_out=False) for seed in range(200)]
    assert all(problem.earlier for problem in problems)
    replies = [reply for problem in problems for _, reply in problem.earlier]
    assert any("```<tool_call>\nCode execution result: " in reply for reply in replies)
    assert HONEST_REPLY in replies
    assert any(problem.family == "follow_up" for problem in problems)
    assert any(problem.system for problem in problems)


def test_reply_without_code_is_honest() -> None:
    problem = without_code(Random(0))
    assert (problem.plan, problem.closing, problem.has_instruction) == ((), HONEST_REPLY, False)


def test_zero_shares_give_only_families() -> None:
    for index in range(100):
        problem = training_trace(0, index, TraceMix(), MARKER).problem
        assert not problem.earlier
        assert problem.plan
        assert problem.family not in ("ordinary", "calculation", "story")
