"""Shapes of the models with random weights that benchmarks run: fields of Qwen3Config."""

from __future__ import annotations

from typing import Final

SHAPES: Final = {
    # A step of the engine takes less time than the API's work on its tokens: the API's costs, magnified.
    "2m": {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
    # The body of Qwen3-0.6B, for steps as long as real ones.
    "0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}
