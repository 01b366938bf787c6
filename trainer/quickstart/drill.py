"""Random tokens written three times over: what a model first learns to copy on.

Copying takes two attention layers that only pay off together. On traces alone, where few tokens are copied,
they are slow to form: most of a run is a plateau. Here all but the first third is copied. The first half
of the drill repeats its tokens in place, which can be learned by counting positions and is quick; the second
half repeats numbers out of order, which can only be learned by looking them up.
"""

from __future__ import annotations

from random import Random

import torch
from transformers import PreTrainedTokenizerFast

from trainer.quickstart.data import IGNORED

ROWS = 16
"""Sequences a step."""
PART = 24
"""Tokens in one part of a sequence that repeats in place."""
NUMBERS = 8
"""Numbers in one part of a sequence that repeats out of order."""

Batch = tuple[torch.Tensor, torch.Tensor]


def number_pieces(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids of the tokens that numbers are made of."""
    vocabulary = tokenizer.get_vocab().items()
    return sorted(index for token, index in vocabulary if token.isascii() and token.isdigit())


def drill_batch(tokenizer: PreTrainedTokenizerFast, *, seed: int, step: int, steps: int) -> Batch:
    """``(ids, labels)`` of step ``step`` of ``steps``, int64 [ROWS, time]; the first part is not learned."""
    rng = Random(f"drill {seed} {step}")
    pieces = number_pieces(tokenizer)
    in_place = step < steps // 2
    rows = [
        _in_place(pieces, len(tokenizer), rng) if in_place else _out_of_order(tokenizer, rng)
        for _ in range(ROWS)
    ]
    # Few different lengths: kernels are compiled for each.
    length = min(len(ids) for ids, _ in rows) // 8 * 8
    ids = torch.tensor([ids[:length] for ids, _ in rows])
    labels = ids.clone()
    for index, (_, given) in enumerate(rows):
        labels[index, :given] = IGNORED
    return ids, labels


def _in_place(pieces: list[int], vocabulary: int, rng: Random) -> tuple[list[int], int]:
    """Four in five tokens are pieces of numbers."""
    part = [rng.choice(pieces) if rng.random() < 0.8 else rng.randrange(vocabulary) for _ in range(PART)]
    return part * 3, PART + 1


def _out_of_order(tokenizer: PreTrainedTokenizerFast, rng: Random) -> tuple[list[int], int]:
    """Numbers, each with a word or two after it; then the same in another order, twice."""
    numbers = []
    for _ in range(NUMBERS):
        digits = f" {rng.randrange(10 ** (length := rng.randint(3, 8))):0{length}d}"
        words = [rng.randrange(len(tokenizer)) for _ in range(rng.randint(1, 2))]
        numbers.append(tokenizer.encode(digits, add_special_tokens=False) + words)
    shuffled = [rng.sample(numbers, NUMBERS) for _ in range(2)]
    if rng.random() < 0.5:
        shuffled[0] = numbers
    given = sum(map(len, numbers))
    return [token for part in (numbers, *shuffled) for number in part for token in number], given
