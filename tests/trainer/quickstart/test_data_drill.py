from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast

from trainer.quickstart.data import IGNORED, PART, ROWS, drill_batch, number_pieces


def test_pieces_are_all_that_numbers_are_made_of(tokenizer: PreTrainedTokenizerFast) -> None:
    pieces = number_pieces(tokenizer)
    assert len(pieces) == 10 + 100 + 1000
    assert tokenizer.encode("007", add_special_tokens=False)[0] in pieces


def test_first_half_repeats_in_place(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, labels = drill_batch(tokenizer, seed=0, step=4, steps=10)
    assert ids.shape == (ROWS, 3 * PART)
    assert torch.equal(ids[:, :PART], ids[:, PART : 2 * PART])
    assert (labels[:, : PART + 1] == IGNORED).all()
    assert torch.equal(labels[:, PART + 1 :], ids[:, PART + 1 :])


def test_second_half_repeats_the_same_tokens_out_of_order(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, labels = drill_batch(tokenizer, seed=0, step=5, steps=10)
    for row, targets in zip(ids, labels, strict=True):
        given = int((targets == IGNORED).sum())
        first, second = row[:given].tolist(), row[given : 2 * given].tolist()
        assert sorted(first) == sorted(second)


def test_a_step_is_made_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    again = [drill_batch(tokenizer, seed=0, step=7, steps=10)[0] for _ in range(2)]
    assert torch.equal(*again)
    assert not torch.equal(again[0], drill_batch(tokenizer, seed=1, step=7, steps=10)[0])
