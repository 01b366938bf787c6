from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast

from trainer.quickstart.config import WarmStartConfig
from trainer.quickstart.data import IGNORED, number_pieces
from trainer.quickstart.model import build_model, copy_accuracy, next_token_logits


def test_same_seed_gives_same_weights(tiny: WarmStartConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    first, again = build_model(tiny, tokenizer), build_model(tiny, tokenizer)
    other = build_model(tiny.model_copy(update={"seed": 1}), tokenizer)
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_vocabulary_covers_every_token(tiny: WarmStartConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    assert build_model(tiny, tokenizer).config.vocab_size >= len(tokenizer)


def test_copy_accuracy_counts_only_learned_numbers(
    tiny: WarmStartConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build_model(tiny, tokenizer)
    numbers = torch.tensor(number_pieces(tokenizer))
    ids = numbers[:8].reshape(2, 4)
    predicted = next_token_logits(model, ids).argmax(-1)
    # Row 0 has the label that the model predicts, row 1 another one; both at one number token.
    labels = torch.full_like(ids, IGNORED)
    labels[0, 2] = predicted[0, 1]
    labels[1, 2] = numbers[numbers != predicted[1, 1]][0]
    counted = torch.cat([numbers, predicted[0, 1:2]])
    assert copy_accuracy(model, [(ids, labels)], counted) == (0.5, 0.5)
