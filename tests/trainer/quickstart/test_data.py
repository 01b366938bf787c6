from __future__ import annotations

import itertools
from random import Random

import torch
from transformers import PreTrainedTokenizerFast

from service.deferral.policy import DeferralPolicy
from service.deferral.prompt import instruct
from trainer.quickstart.data import (
    IGNORED,
    PART,
    ROWS,
    Example,
    batches,
    collate,
    drill_batch,
    encode_trace,
    grouped,
    lengths,
    number_pieces,
    prompt_ids,
)
from trainer.quickstart.problems import FAMILIES, PracticeProblem
from trainer.quickstart.traces import TraceMix, write_trace

POLICY = DeferralPolicy(prompt="brief-v1")


def test_only_written_tokens_are_learned(tokenizer: PreTrainedTokenizerFast) -> None:
    problem = FAMILIES["product"](Random(0))
    trace = write_trace(problem, Random(0), TraceMix(detour_share=0), POLICY.marker)
    example = encode_trace(trace, tokenizer, POLICY.prompt)
    learned = tokenizer.decode([i for i, on in zip(example.ids, example.learned, strict=True) if on])
    given = tokenizer.decode([i for i, on in zip(example.ids, example.learned, strict=True) if not on])
    box = problem.closing.format(f"\\boxed{{{problem.answer}}}")
    assert learned.endswith(f"```<tool_call>{box}<|im_end|>")
    assert given == (
        f"<|im_start|>user\n{instruct(problem.text, 'brief-v1')}<|im_end|>\n<|im_start|>assistant\n"
        f"<think>\n\n</think>\n\n\nCode execution result: {problem.answer}\n</tool_call>\n"
    )


def test_collate_excludes_padding_from_loss() -> None:
    ids, labels = collate([Example([5, 6, 7], [False, True, True]), Example([8], [True])], pad_id=0)
    assert ids.shape == (2, 16)
    assert ids[:, :3].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert labels[:, :3].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
    assert (labels[:, 3:] == IGNORED).all()


def test_collate_fills_given_shape() -> None:
    ids, labels = collate([Example([5, 6], [False, True])], pad_id=0, rows=3, length=32)
    assert ids.shape == labels.shape == (3, 32)
    assert ids[1:].sum() == 0
    assert (labels[1:] == IGNORED).all()


def test_instruction_is_only_in_last_user_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    problem = PracticeProblem("p", "and 2+3?", 5, (), "", earlier=(("1+1", "It is 2."),), system="Be brief.")
    assert tokenizer.decode(prompt_ids(problem, tokenizer, "brief-v1")) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1<|im_end|>\n"
        "<|im_start|>assistant\nIt is 2.<|im_end|>\n"
        f"<|im_start|>user\n{instruct('and 2+3?', 'brief-v1')}<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_request_without_code_has_no_instruction(tokenizer: PreTrainedTokenizerFast) -> None:
    problem = PracticeProblem("p", "2+3?", "", (), "", has_instruction=False)
    text = tokenizer.decode(prompt_ids(problem, tokenizer, "brief-v1"))
    assert text.startswith("<|im_start|>user\n2+3?<|im_end|>")


def test_groups_contain_every_fitting_example() -> None:
    examples = [Example([1] * n, [True] * n) for n in (3, 16, 17, 100, 480, 481)]
    groups = grouped(examples, 480)
    placed = sorted(len(example.ids) for _, group in groups for example in group)
    assert placed == [3, 16, 17, 100, 480], "481 tokens are more than a batch"
    for length, group in groups:
        assert length in lengths(480)
        assert len(group) <= 480 // length
        assert all(len(example.ids) <= length for example in group)


def test_batches_have_fixed_size_and_resume_anywhere(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    def stream(start: int) -> list[torch.Tensor]:
        made = batches(tokenizer, seed=1, mix=TraceMix(), policy=POLICY, tokens=1440, start=start)
        return [ids for ids, _ in itertools.islice(made, 20 - start)]

    whole = stream(0)
    assert {ids.numel() for ids in whole} == {1440}
    for start in (1, 19):
        assert all(torch.equal(a, b) for a, b in zip(whole[start:], stream(start), strict=True))


def test_number_pieces_cover_all_numbers(tokenizer: PreTrainedTokenizerFast) -> None:
    pieces = number_pieces(tokenizer)
    assert len(pieces) == 10 + 100 + 1000
    assert tokenizer.encode("007", add_special_tokens=False)[0] in pieces


def test_drill_first_half_repeats_in_place(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, labels = drill_batch(tokenizer, seed=0, step=4, steps=10)
    assert ids.shape == (ROWS, 3 * PART)
    assert torch.equal(ids[:, :PART], ids[:, PART : 2 * PART])
    assert (labels[:, : PART + 1] == IGNORED).all()
    assert torch.equal(labels[:, PART + 1 :], ids[:, PART + 1 :])


def test_drill_second_half_repeats_out_of_order(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, labels = drill_batch(tokenizer, seed=0, step=5, steps=10)
    for row, targets in zip(ids, labels, strict=True):
        given = int((targets == IGNORED).sum())
        first, second = row[:given].tolist(), row[given : 2 * given].tolist()
        assert sorted(first) == sorted(second)


def test_drill_batch_depends_only_on_step(tokenizer: PreTrainedTokenizerFast) -> None:
    again = [drill_batch(tokenizer, seed=0, step=7, steps=10)[0] for _ in range(2)]
    assert torch.equal(*again)
    assert not torch.equal(again[0], drill_batch(tokenizer, seed=1, step=7, steps=10)[0])
