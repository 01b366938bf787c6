"""Read another checkpoint of a model that is running, and refuse what is not one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from service.engines.base import EngineError
from service.engines.linear import AdapterLinear, PackedLinear
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


def unmap(model: nn.Module) -> None:
    """Copy the weights into memory of our own.

    Loaded weights are a view of the checkpoint's file: a training run that writes the next checkpoint over it
    would change the model in the middle of a sentence.
    """
    for weight in model.parameters():
        weight.data = weight.data.clone()


class Weights:
    """The weights of a running model by parameter name, to be replaced while it is served.

    Make it before layers are replaced or wrapped: names, shapes and ties are those of the checkpoint.
    A weight goes to wherever its module is then.

    Args:
        model: as loaded; tied weights have several names and one storage.
    """

    def __init__(self, model: nn.Module) -> None:
        state: dict[str, Tensor] = model.state_dict()
        self._shapes = {name: tensor.shape for name, tensor in state.items()}
        self._storage = {name: tensor.data_ptr() for name, tensor in state.items()}
        self._model = model

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Replace all weights, or none. A tied weight may have any of its names.

        Raises:
            EngineError: names or shapes differ from the model's.
        """
        if unknown := sorted(state.keys() - self._shapes.keys()):
            raise EngineError(
                f"new weights: {unknown[0]!r} is not a parameter of the model ({len(unknown)} unknown)"
            )
        for name, tensor in state.items():
            if tensor.shape != self._shapes[name]:
                raise EngineError(
                    f"new weights: {name!r} is {list(tensor.shape)}, not {list(self._shapes[name])}"
                )
        given = {self._storage[name]: tensor for name, tensor in state.items()}
        if missing := [name for name, storage in self._storage.items() if storage not in given]:
            raise EngineError(f"new weights: {missing[0]!r} is missing ({len(missing)} missing)")
        for name, storage in self._storage.items():
            self._put(name, given[storage])

    def _put(self, name: str, tensor: Tensor) -> None:
        path, _, attribute = name.rpartition(".")
        module = self._model.get_submodule(path)
        if isinstance(module, AdapterLinear):
            module = module.base
        if isinstance(module, PackedLinear) and attribute == "weight":
            module.pack(tensor)
        else:
            getattr(module, attribute).copy_(tensor)


def _compare(theirs: PretrainedConfig, ours: PretrainedConfig) -> None:
    new, old = theirs.to_dict(), ours.to_dict()
    for name in sorted((new.keys() | old.keys()) - _NO_MATTER):
        if name.endswith("_token_id"):
            continue
        if new.get(name) != old.get(name):
            raise EngineError(
                f"new weights: they are of another model: {name} is {new.get(name)!r}, not {old.get(name)!r}"
            )
