"""A Qwen checkpoint with random weights and its own small tokenizer, created in a second. Default: Qwen3."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKUP_TOKENS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
"""Added tokens that are not flagged as special, as in Qwen3's tokenizer."""

_CORPUS = (
    "Let x = 12 and y = 30. Then x + y = 42, so the answer is \\boxed{42}.",
    "```python\nx = 3 * 7\nprint(x)\n```\n",
    "\nCode execution result: 21\n",
    "Solve the problem step by step and put the final answer in \\boxed{}.",
    "for i in range(10):\n    total = total + i * i\n",
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen3's special tokens and a ChatML template with ``enable_thinking``."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_special_tokens(list(CONTROL_TOKENS))
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=Path(__file__).with_name("chat_template.jinja").read_text(),
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, **overrides: object) -> Qwen3ForCausalLM:
    """A float32 model of about 100k random weights; ``overrides`` are fields of Qwen3Config.

    The weights are drawn wider than a fresh model's, so that the distribution is not flat and depends on
    the whole prefix: a cache that mixes up positions or rows shows in the logits.
    """
    shape: dict[str, object] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(Qwen3Config(**{**shape, **overrides}))
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id], pad_token_id=tokenizer.pad_token_id
    )
    return model.float().eval()


def make_qwen2(tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, **overrides: object) -> Qwen2ForCausalLM:
    """The same for Qwen2 and Qwen2.5: attention with biases, without norms of query and key."""
    like = make_model(tokenizer, seed=seed, **overrides)
    fields = like.config.to_dict()
    for name in ("model_type", "architectures", "head_dim", "layer_types"):
        fields.pop(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(Qwen2Config(**fields)).float().eval()
        for name, weight in model.named_parameters():
            if name.endswith("bias"):  # initialised with zero
                torch.nn.init.normal_(weight, std=0.5)
    model.generation_config = like.generation_config
    return model


def save(model: PreTrainedModel, directory: Path) -> Path:
    """Write model, tokenizer and generation config to ``directory`` in the Hugging Face format."""
    model.save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


def make_checkpoint(directory: Path, *, seed: int = 0, **overrides: object) -> Path:
    """`make_model`, then `save`."""
    return save(make_model(make_tokenizer(), seed=seed, **overrides), directory)
