from __future__ import annotations

import itertools
from random import Random

import torch
from transformers import PreTrainedTokenizerFast

from service.deferral.policy import DeferralPolicy
from service.deferral.prompt import instruct
from trainer.quickstart.data import IGNORED, POOL, Example, batches, collate, encode_trace
from trainer.quickstart.problems import FAMILIES
from trainer.quickstart.traces import Style, write_trace

POLICY = DeferralPolicy(prompt="brief-v1")


def test_only_what_the_model_writes_is_learned(tokenizer: PreTrainedTokenizerFast) -> None:
    problem = FAMILIES["product"](Random(0))
    trace = write_trace(problem, Random(0), Style(detour_share=0), POLICY.marker)
    example = encode_trace(trace, tokenizer, POLICY.prompt)
    learned = tokenizer.decode([i for i, on in zip(example.ids, example.learned, strict=True) if on])
    given = tokenizer.decode([i for i, on in zip(example.ids, example.learned, strict=True) if not on])
    box = problem.closing.format(f"\\boxed{{{problem.answer}}}")
    assert learned.endswith(f"```<tool_call>{box}<|im_end|>")
    assert given == (
        f"<|im_start|>user\n{instruct(problem.text, 'brief-v1')}<|im_end|>\n<|im_start|>assistant\n"
        f"<think>\n\n</think>\n\n\nCode execution result: {problem.answer}\n</tool_call>\n"
    )


def test_collate_pads_with_what_is_not_learned() -> None:
    ids, labels = collate([Example([5, 6, 7], [False, True, True]), Example([8], [True])], pad_id=0)
    assert ids.shape == (2, 16)
    assert ids[:, :3].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert labels[:, :3].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
    assert (labels[:, 3:] == IGNORED).all()


def test_batches_go_on_from_any_number(tokenizer: PreTrainedTokenizerFast) -> None:
    def stream(start: int) -> list[torch.Tensor]:
        made = batches(tokenizer, seed=1, style=Style(), policy=POLICY, size=2, start=start)
        return [ids for ids, _ in itertools.islice(made, 2 * POOL - start)]

    whole = stream(0)
    for start in (1, POOL - 1, POOL, POOL + 3):
        assert all(torch.equal(a, b) for a, b in zip(whole[start:], stream(start), strict=True))
