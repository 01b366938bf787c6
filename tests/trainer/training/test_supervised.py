"""Supervised steps of tiny models, whole and by adapter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.support.tiny_qwen3 import make_model, make_tokenizer
from trainer.training.chunked_lm_head import PolicyModel
from trainer.training.lora import attach_adapter, merged_weights, parameter_groups
from trainer.training.recipe_tables import LoraSettings
from trainer.training.supervised import (
    TrainingText,
    evaluate_texts,
    make_text_batch,
    supervised_step,
)

TOKENIZER = make_tokenizer()
MARKER = TOKENIZER.get_vocab()["<tool_call>"]
PAD = int(TOKENIZER.pad_token_id)
TEXTS = [
    TrainingText([5, 6, 7, 8, MARKER, 9], [False, False, True, True, True, True]),
    TrainingText([5, 9, 7, MARKER], [False, False, True, True]),
    TrainingText([5, 10, 11, 12, 13], [False, False, True, True, True]),
]


def test_batches_are_padded_and_never_learn_the_first_token() -> None:
    batch = make_text_batch([TrainingText([1, 2], [True, True]), TrainingText([3, 4, 5], [False] * 3)], 0)
    assert batch.input_ids.tolist() == [[1, 2, 0], [3, 4, 5]]
    assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.targets.tolist() == [[False, True, False], [False, False, False]]
    assert batch.num_targets == 1


@pytest.mark.parametrize("texts", [[], [TrainingText([1, 2], [True])]])
def test_rejects_texts_that_do_not_make_a_batch(texts: list[TrainingText]) -> None:
    with pytest.raises(ValueError, match="text"):
        make_text_batch(texts, 0)


@pytest.mark.parametrize("split", [[3], [1, 2], [1, 1, 1]])
def test_a_step_follows_the_mean_over_all_learned_tokens(split: list[int]) -> None:
    """However the texts are dealt to micro-batches."""
    reference: Any = make_model(TOKENIZER)
    batch = make_text_batch(TEXTS, PAD)
    logits = reference(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    chosen = batch.targets[:, 1:]
    loss = cross_entropy(logits[chosen], batch.input_ids[:, 1:][chosen])
    loss.backward()
    torch.optim.SGD(reference.parameters(), lr=0.1).step()

    model: Any = make_model(TOKENIZER)
    starts = [sum(split[:i]) for i in range(len(split))]
    parts = [make_text_batch(TEXTS[s : s + n], PAD) for s, n in zip(starts, split, strict=True)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    result = supervised_step(PolicyModel(model), parts, optimizer, MARKER, max_grad_norm=1e9)
    assert result.loss == pytest.approx(loss.item(), abs=1e-5)
    assert (result.tokens, result.learned) == (15, 9)
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4, msg=name)
        assert ours.grad is None


def test_a_step_without_learned_tokens_is_rejected() -> None:
    model = make_model(TOKENIZER)
    batch = make_text_batch([TrainingText([1, 2], [False, False])], PAD)
    with pytest.raises(ValueError, match="learned"):
        supervised_step(PolicyModel(model), [batch], torch.optim.SGD(model.parameters()), MARKER)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_learns_a_marker_whose_row_equals_unused_rows(dtype: torch.dtype) -> None:
    """Its own row alone makes the difference: the frozen rows are the same vector."""
    base: Any = make_model(TOKENIZER, vocab_size=len(TOKENIZER) + 4)
    with torch.no_grad():
        weight = base.model.embed_tokens.weight
        weight[len(TOKENIZER) :] = weight[MARKER]
    frozen = {name: p.clone() for name, p in base.to(dtype).state_dict().items()}
    model = attach_adapter(base, LoraSettings(rank=4), MARKER)
    head = PolicyModel(model.get_base_model())
    batch = make_text_batch(TEXTS, PAD)
    before = evaluate_texts(head, [batch], MARKER, dtype=dtype)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, learning_rate=3e-3, marker_lr=2e-2, weight_decay=0.0)
    )
    for _ in range(60):
        supervised_step(head, [batch], optimizer, MARKER, dtype=dtype)
    after = evaluate_texts(head, [batch], MARKER, dtype=dtype)
    assert before.marker_accuracy == 0.0
    assert after.marker_accuracy == 1.0
    assert after.marker_false == 0.0
    assert after.loss < 0.5 * before.loss
    unchanged = merged_weights(model)["model.embed_tokens.weight"]
    others = torch.arange(len(unchanged)) != MARKER
    assert torch.equal(unchanged[others], frozen["model.embed_tokens.weight"][others])
    assert not torch.equal(unchanged[MARKER], frozen["model.embed_tokens.weight"][MARKER])


def test_metrics_are_those_of_whole_logits() -> None:
    model: Any = make_model(TOKENIZER)
    batches = [make_text_batch(TEXTS[:1], PAD), make_text_batch(TEXTS[1:], PAD)]
    found = evaluate_texts(PolicyModel(model), batches, MARKER)
    losses, right = [], []
    for text in TEXTS:
        logits = model(input_ids=torch.tensor([text.ids])).logits[0, :-1]
        for position, learned in enumerate(text.learned[1:]):
            if learned:
                losses.append(cross_entropy(logits[position], torch.tensor(text.ids[position + 1])).item())
                right.append(int(logits[position].argmax()) == text.ids[position + 1])
    assert found.loss == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert found.accuracy == pytest.approx(sum(right) / len(right))
    without = evaluate_texts(PolicyModel(model), [make_text_batch(TEXTS[2:], PAD)], MARKER)
    assert without.marker_accuracy is None
    assert "markers right -" in str(without)
