from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from transformers import PreTrainedTokenizerFast

from service.deferral.prompt import with_instruction
from service.engines.tokenizer import HFTokenizer
from trainer.environments.tools import prompt_section
from trainer.quickstart.data import encode_trace, prompt_ids
from trainer.quickstart.draws import training_problem, training_trace
from trainer.quickstart.problems.multi_hop import SEARCH, multi_hop
from trainer.quickstart.traces import TraceMix, write_trace

ALL = TraceMix(multi_hop_share=1.0, detour_share=0)


@pytest.mark.parametrize("immediate_share", [0, 1])
def test_each_plan_gives_the_answer(immediate_share: float) -> None:
    mix = TraceMix(multi_hop_share=1.0, detour_share=0, immediate_share=immediate_share)
    for seed in range(300):
        trace = training_trace(seed, 0, mix, "<tool_call>")  # raises AssertionError otherwise
        assert trace.problem.family == "multi_hop"
        assert trace.segments[-1].text == f"The answer is \\boxed{{{trace.problem.answer}}}."


def test_plans_run_searches_one_by_one_or_together() -> None:
    together = 0
    for seed in range(300):
        problem = multi_hop(Random(seed))
        searches = sum(
            block.code.count("search(") + block.code.count("search.bind(") for block in problem.plan
        )
        assert searches in (2, 3)
        assert [block.run for block in problem.plan] == [*[False] * (len(problem.plan) - 1), True]
        together += len(problem.plan) == 1
    assert 20 < together < 80  # 30 % of those without a chain, which are half


def test_immediate_plans_flush_after_each_search() -> None:
    mix = TraceMix(detour_share=0, immediate_share=1)
    problem = next(p for seed in range(50) if len((p := multi_hop(Random(seed))).plan) == 3)
    segments = write_trace(problem, Random(0), mix, "<tool_call>").segments
    assert sum(segment.source == "observed" for segment in segments) == 3


def test_prompts_equal_those_of_a_rollout(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    problem = multi_hop(Random(1))
    turns = with_instruction(
        [{"role": "user", "content": problem.text}], "brief-v1", prompt_section([SEARCH])
    )
    tokenizer.save_pretrained(tmp_path)
    rendered = HFTokenizer(str(tmp_path)).render_chat(turns, template_kwargs={"enable_thinking": False})
    assert prompt_ids(problem, tokenizer, "brief-v1") == rendered


def test_traces_fit_a_batch(tokenizer: PreTrainedTokenizerFast) -> None:
    traces = (training_trace(seed, 0, ALL, "<tool_call>") for seed in range(50))
    assert max(len(encode_trace(trace, tokenizer, "brief-v1").ids) for trace in traces) < 1920


def test_held_out_questions_are_measured() -> None:
    for seed in range(30):
        assert training_problem(Random(seed), ALL, "<tool_call>", held_out=True).held_out
        assert not training_problem(Random(seed), ALL, "<tool_call>", held_out=False).held_out
