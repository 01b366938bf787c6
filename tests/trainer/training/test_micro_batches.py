from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.deferral.episode import Outcome
from trainer.training.episodes import Sample
from trainer.training.rollouts import Row, make_micro_batch, split_rows

PAD = 99


def row(prompt: int, mask: str, advantage: float = 1.0, outcome: Outcome = Outcome.ANSWER) -> Row:
    """Return a row with ``prompt`` prompt tokens and the given mask of response tokens."""
    sampled = tuple(map(int, mask))
    ids = tuple(range(10, 10 + len(mask)))
    logprobs = tuple(-0.5 * bit for bit in sampled)
    prompt_ids = tuple(range(1, prompt + 1))
    return Row(Sample(prompt_ids, ids, sampled, logprobs, "", outcome, None, (), 0.0, 0), advantage)


def test_rows_are_padded() -> None:
    batch = make_micro_batch([row(2, "101", 0.5), row(1, "1", -0.5)], 3, PAD)
    assert batch.input_ids.tolist() == [[1, 2, 10, 11, 12], [1, 10, PAD, PAD, PAD], [PAD] * 5]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert batch.targets.int().tolist() == [[0, 0, 1, 0, 1], [0, 1, 0, 0, 0], [0] * 5]
    assert batch.old_log_probs[batch.targets].tolist() == [-0.5] * 3
    assert batch.advantages.tolist() == [0.5, -0.5, 0.0]
    assert batch.num_targets == 3


def test_empty_batch_has_no_targets() -> None:
    batch = make_micro_batch([], 2, PAD)
    assert batch.num_targets == 0
    assert batch.attention_mask.sum(1).tolist() == [1, 1]


def test_void_sample_has_no_targets() -> None:
    assert make_micro_batch([row(2, "111", outcome=Outcome.VOID)], 1, PAD).num_targets == 0


def test_dtypes() -> None:
    batch = make_micro_batch([row(1, "1")], 1, PAD)
    assert (batch.input_ids.dtype, batch.targets.dtype) == (torch.int64, torch.bool)
    assert (batch.old_log_probs.dtype, batch.advantages.dtype) == (torch.float32, torch.float32)


def test_rejects_too_many_rows() -> None:
    with pytest.raises(ValueError, match="3 rows do not fit a micro-batch of 2"):
        make_micro_batch([row(1, "1")] * 3, 2, PAD)
    with pytest.raises(ValueError, match="5 rows do not fit 1 x 2 micro-batches of 2"):
        split_rows([row(1, "1")] * 5, updates=1, micro_batches=2, size=2, seed=0)


@given(
    lengths=st.lists(st.integers(1, 50), max_size=24),
    updates=st.sampled_from([1, 2, 3]),
    size=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 5),
)
def test_every_row_is_used_once(lengths: list[int], updates: int, size: int, seed: int) -> None:
    micro_batches = max(1, -(-len(lengths) // (updates * size))) + 1
    rows = [row(length, "1", advantage=float(i)) for i, length in enumerate(lengths)]
    split = split_rows(rows, updates=updates, micro_batches=micro_batches, size=size, seed=seed)
    assert len(split) == updates * micro_batches
    assert all(len(part) <= size for part in split)
    assert sorted(r.advantage for part in split for r in part) == [r.advantage for r in rows]
    assert split == split_rows(rows, updates=updates, micro_batches=micro_batches, size=size, seed=seed)


def test_steps_get_equal_shares_sorted_by_length() -> None:
    rows = [row(length, "1") for length in (9, 1, 8, 2, 7, 3, 6, 4)]
    split = split_rows(rows, updates=2, micro_batches=2, size=2, seed=0)
    assert [len(part) for part in split] == [2, 2, 2, 2]
    for first in (0, 2):
        lengths = [r.length for part in split[first : first + 2] for r in part]
        assert lengths == sorted(lengths)
