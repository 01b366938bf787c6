"""Shapes of the benchmarks' random models: fields of Qwen3Config."""

from __future__ import annotations

from typing import Final

SHAPES: Final = {
    # An engine step is faster than the API's work on its tokens, which magnifies the API's costs.
    "2m": {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
    # About the smallest model for which `dtype=auto` selects bfloat16.
    "20m": {
        "hidden_size": 448,
        "intermediate_size": 1280,
        "num_hidden_layers": 8,
        "num_attention_heads": 7,
        "num_key_value_heads": 1,
        "head_dim": 64,
    },
    # A step of one stream takes about ten milliseconds on a CPU, like an 8B model on a GPU.
    "60m": {
        "hidden_size": 640,
        "intermediate_size": 1920,
        "num_hidden_layers": 12,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
}
