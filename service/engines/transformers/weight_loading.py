"""Weights of the embedded engine: dtype selection, packed linear layers, and replacement while the model
runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from service.engines.base import EngineError
from service.engines.tokenizer import HFTokenizer
from service.engines.transformers.lora import AdapterLinear


class PackedLinear(nn.Module):
    """An ``nn.Linear`` on the CPU that stores its weight in oneDNN's block layout.

    oneDNN converts a plain weight into this layout at every call, which takes longer than the product itself
    if a step has few tokens. The plain weight is not kept.

    Args:
        linear: a layer in bfloat16 or float32 on the CPU.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.pack(linear.weight.detach())

    def pack(self, weight: Tensor) -> None:
        """Store a new weight [out_features, in_features]."""
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [..., in_features] to [..., out_features]."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self.bias, "none", [], None)
        return output


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `PackedLinear` works on this machine and is faster: on the CPU, in bfloat16."""
    # Not in float32: MKL's own kernels are as fast without another layout.
    mkldnn: Any = torch.backends.mkldnn
    if device.type != "cpu" or dtype != torch.bfloat16 or not mkldnn.is_available():
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack_linears(model: nn.Module) -> None:
    """Replace every ``nn.Linear`` below ``model`` by a `PackedLinear`."""
    for name, child in list(model.named_children()):
        if type(child) is nn.Linear:
            setattr(model, name, PackedLinear(child))
        else:
            pack_linears(child)


Dtype = Literal["auto", "float32", "bfloat16", "float16"]

BFLOAT16_FROM: Final = 20_000_000
"""Number of parameters from which bfloat16 decodes faster than float32 on a CPU that supports it. Smaller
models spend their time on calls, not on weights (`benchmarks/engine.py --dtypes`)."""


def resolve_dtype(dtype: Dtype, device: torch.device, parameters: int) -> Dtype:
    """Return the dtype to load a model in. ``auto`` remains only on a GPU, where it means the checkpoint's
    own.

    On a CPU, ``auto`` is bfloat16 if the CPU has instructions for it (AVX512-BF16 or AMX) and the model has
    at least ``BFLOAT16_FROM`` parameters, else float32. The choice depends on nothing else, so a model has
    the same dtype at every start on one machine.
    """
    if dtype != "auto" or device.type != "cpu":
        return dtype
    return "bfloat16" if parameters >= BFLOAT16_FROM and has_bfloat16() else "float32"


def has_bfloat16() -> bool:
    """Whether this machine's CPU has instructions for bfloat16 products."""
    return any(
        getattr(torch.cpu, name, bool)()  # private names, which other versions of torch may lack
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


_NO_MATTER: Final = frozenset(
    {"_name_or_path", "architectures", "attn_implementation", "dtype", "transformers_version", "use_cache"}
)
"""Fields of ``config.json`` that do not affect the meaning of the weights."""


def read_weights(
    model: str, config: PretrainedConfig, tokenizer: HFTokenizer, dtype: torch.dtype
) -> Mapping[str, Tensor]:
    """Read the weights in the directory ``model`` into private CPU memory, by parameter name.

    Args:
        model: directory of a checkpoint.
        config: configuration of the running model; the checkpoint's must be equivalent.
        tokenizer: tokenizer of the running model; the checkpoint must have the same vocabulary.
        dtype: dtype of the running model.

    Raises:
        EngineError: the checkpoint can't be read, is incomplete, or belongs to another model. The message
        names the difference.
    """
    try:
        _compare(AutoConfig.from_pretrained(model), config)
        if HFTokenizer(model).backend.get_vocab() != tokenizer.backend.get_vocab():
            raise EngineError("new weights: the tokenizer has another vocabulary")
        read: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise EngineError(f"new weights: {model} can't be read: {error}") from error
    loaded, report = read
    # transformers initialises missing weights randomly.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, report[kind])):
            raise EngineError(
                f"new weights: {kind.partition('_')[0]} in {model}: {names[0]} ({len(names)} in all)"
            )
    unmap(loaded)
    state: Mapping[str, Tensor] = loaded.state_dict()
    return state


def unmap(model: nn.Module) -> None:
    """Copy the weights into private memory.

    Loaded weights are a view of the checkpoint's file: a training run that overwrites the file with its next
    checkpoint would change the running model.
    """
    for weight in model.parameters():
        weight.data = weight.data.clone()


class Weights:
    """The weights of a running model by parameter name, replaceable while the model is served.

    Create it before layers are packed or wrapped: names, shapes and ties are those of the checkpoint. `load`
    finds each weight's module in the packed or wrapped model.

    Args:
        model: the model as loaded; tied weights have several names and one storage.
    """

    def __init__(self, model: nn.Module) -> None:
        state: dict[str, Tensor] = model.state_dict()
        self._shapes = {name: tensor.shape for name, tensor in state.items()}
        self._dtypes = {name: tensor.dtype for name, tensor in state.items()}
        self._storage = {name: tensor.data_ptr() for name, tensor in state.items()}
        self._model = model

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Replace all weights, or none. A tied weight may be given under any of its names, and in any dtype.

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
            module.pack(tensor.to(self._dtypes[name]))
        else:
            getattr(module, attribute).copy_(tensor)


def _compare(theirs: PretrainedConfig, ours: PretrainedConfig) -> None:
    new, old = theirs.to_dict(), ours.to_dict()
    for name in sorted((new.keys() | old.keys()) - _NO_MATTER):
        if name.endswith("_token_id"):
            continue
        if new.get(name) != old.get(name):
            raise EngineError(
                f"new weights: this is another model: {name} is {new.get(name)!r}, not {old.get(name)!r}"
            )
