"""vLLM's engine arguments for tests: quick to start on a CPU, small in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

BLOCK: Final = 32
"""Block size of the prefix cache, in tokens."""

VLLM_ARGS: Final[dict[str, Any]] = {
    "enforce_eager": True,
    "block_size": BLOCK,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 2048,
    "distributed_executor_backend": "uni",  # saves a process, which would import torch again
}


def as_options(arguments: Mapping[str, Any]) -> list[str]:
    """The same arguments as options of ``ih-grpo serve``."""
    return [f"--vllm-arg={name}={json.dumps(value)}" for name, value in arguments.items()]
