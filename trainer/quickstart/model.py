"""The quickstart model, its loss and its copying accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from trainer.quickstart.config import WarmStartConfig
from trainer.quickstart.data import IGNORED

CONTEXT = 2048
"""Maximum sequence length in tokens."""
ATTENTION = "eager"
"""Attention implementation; on a CPU faster than the fused kernel for such short sequences."""


def build_model(config: WarmStartConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Return the recipe's checkpoint, or a Qwen3 model with random weights determined by the seed."""
    if config.model is not None:
        return Qwen3ForCausalLM.from_pretrained(
            config.model, dtype=torch.float32, attn_implementation=ATTENTION
        )
    torch.manual_seed(config.seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=math.ceil(len(tokenizer) / 16) * 16,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=2,
            head_dim=config.head_dim,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            attn_implementation=ATTENTION,  # type: ignore[call-arg]
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )
    # Greedy by default: there is one correct answer, so sampling has no benefit.
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


HEAD_ROWS = 256
"""Rows of the LM head are padded to a multiple of this, because kernels are compiled per shape."""


def next_token_loss(model: Qwen3ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy over the labels that are not `IGNORED`.

    ``ids`` and ``labels`` are int64 [batch, time]. Only positions in the loss pass through the head. Runs in
    bfloat16; the weights stay in float32.
    """
    targets = labels[:, 1:].flatten()
    [places] = torch.where(targets != IGNORED)
    padding = -len(places) % HEAD_ROWS
    targets = F.pad(targets[places], (0, padding), value=IGNORED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        chosen = hidden[:, :-1].flatten(0, 1)[F.pad(places, (0, padding))]
        logits = model.lm_head(chosen)
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED)


def next_token_logits(model: Qwen3ForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits for ``ids[:, 1:]``, float32 [batch, time - 1, vocab]; ``ids`` is int64 [batch, time].

    Runs in bfloat16; the weights stay in float32.
    """
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits: torch.Tensor = model.lm_head(hidden[:, :-1])
    return logits.float()


@torch.no_grad()
def copy_accuracy(
    model: Qwen3ForCausalLM, batches: Sequence[tuple[torch.Tensor, torch.Tensor]], numbers: torch.Tensor
) -> tuple[float, float]:
    """Return the share of correctly predicted number tokens, and the share of traces with all of them
    correct.

    Args:
        model: the model.
        batches: ``(ids, labels)`` pairs, int64 [batch, time]; only tokens in the loss count.
        numbers: ids of the number pieces, int64 [n].
    """
    right = total = whole = rows = 0
    for ids, labels in batches:
        targets = labels[:, 1:]
        is_number = torch.isin(targets, numbers)
        wrong = (next_token_logits(model, ids).argmax(-1) != targets) & is_number
        right += int(is_number.sum() - wrong.sum())
        total += int(is_number.sum())
        is_trace = (targets != IGNORED).any(1)  # other rows are padding
        whole += int((~wrong.any(1) & is_trace).sum())
        rows += int(is_trace.sum())
    return right / total, whole / rows
