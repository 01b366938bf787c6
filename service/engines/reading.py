"""Read another checkpoint of a model that is running, and refuse what is not one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from service.engines.base import EngineError
from service.engines.tokenizer import HFTokenizer

_NO_MATTER: Final = frozenset(
    {"_name_or_path", "architectures", "attn_implementation", "dtype", "transformers_version", "use_cache"}
)
"""Fields of ``config.json`` that say nothing of what the weights mean."""


def read_weights(
    model: str, config: PretrainedConfig, tokenizer: HFTokenizer, dtype: torch.dtype
) -> Mapping[str, Tensor]:
    """The weights in the directory ``model``, in memory of their own, on the CPU, by parameter name.

    Args:
        model: directory of a checkpoint.
        config: of the model that runs; the checkpoint's must mean the same.
        tokenizer: of the model that runs; the checkpoint must have the same vocabulary.
        dtype: that the model runs in.

    Raises:
        EngineError: it can't be read, is not whole, or is another model's; the message says what differs.
    """
    try:
        _compare(AutoConfig.from_pretrained(model), config)
        if HFTokenizer(model).backend.get_vocab() != tokenizer.backend.get_vocab():
            raise EngineError("new weights: their tokenizer has another vocabulary")
        read: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise EngineError(f"new weights: {model} can't be read: {error}") from error
    loaded, report = read
    # transformers fills gaps with random numbers.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, report[kind])):
            raise EngineError(
                f"new weights: {kind.partition('_')[0]} in {model}: {names[0]} ({len(names)} in all)"
            )
    unmap(loaded)
    state: Mapping[str, Tensor] = loaded.state_dict()
    return state


def unmap(model: torch.nn.Module) -> None:
    """Copy the weights into memory of our own.

    Loaded weights are a view of the checkpoint's file: a training run that writes the next checkpoint over it
    would change the model in the middle of a sentence.
    """
    for weight in model.parameters():
        weight.data = weight.data.clone()


def _compare(theirs: PretrainedConfig, ours: PretrainedConfig) -> None:
    new, old = theirs.to_dict(), ours.to_dict()
    for name in sorted((new.keys() | old.keys()) - _NO_MATTER):
        if name.endswith("_token_id"):
            continue
        if new.get(name) != old.get(name):
            raise EngineError(
                f"new weights: they are of another model: {name} is {new.get(name)!r}, not {old.get(name)!r}"
            )
