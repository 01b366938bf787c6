"""Read another checkpoint of a model that is running, and refuse what is not one.

Linear layers of the embedded engine: weights in oneDNN's layout, and LoRA adapters chosen by token.

The type of weights and cache that ``dtype=auto`` stands for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from service.engines.base import EngineError
from service.engines.tokenizer import HFTokenizer


class PackedLinear(nn.Module):
    """An ``nn.Linear`` on the CPU whose weight is stored in the block layout that oneDNN computes with.

    A plain weight is put into that layout at every call, which takes longer than the product itself when a
    step has few tokens. The plain weight is not kept.

    Args:
        linear: a layer in bfloat16 or float32 on the CPU.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.pack(linear.weight.detach())

    def pack(self, weight: Tensor) -> None:
        """Take a new weight [out_features, in_features]."""
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [..., in_features] to [..., out_features]."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self.bias, "none", [], None)
        return output


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `PackedLinear` runs on this machine and is the faster way: on the CPU, in bfloat16."""
    # Not in float32: MKL's own kernels need no other layout and are as fast.
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


@dataclass(slots=True)
class AdapterRows:
    """Tokens of the current step by adapter: the rows [n], int64, that each adapter acts on.

    The runner sets it before a forward pass; the layers read it during the pass.
    """

    groups: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lora:
    """One adapter's part of one layer: ``a`` [in_features, r] and ``b`` [r, out_features], scaled."""

    a: Tensor
    b: Tensor


class AdapterLinear(nn.Module):
    """A linear layer that adds, to each token, the low-rank product of the adapter that the token asks for.

    Args:
        base: the layer itself.
        loras: by adapter name; an adapter that leaves this layer alone is not in it.
        rows: shared by all layers of the model.
    """

    def __init__(self, base: nn.Module, loras: Mapping[str, Lora], rows: AdapterRows) -> None:
        super().__init__()
        self.base = base
        self._loras = dict(loras)
        self._rows = rows

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [..., in_features] to [..., out_features], of T tokens in all."""
        output: Tensor = self.base(x)
        for lora, rows in self._active():
            delta = x.view(-1, x.shape[-1])[rows] @ lora.a @ lora.b
            output.view(-1, output.shape[-1]).index_add_(0, rows, delta)
        return output

    def _active(self) -> Iterator[tuple[Lora, Tensor]]:
        for name, rows in self._rows.groups.items():
            if (lora := self._loras.get(name)) is not None:
                yield lora, rows


Dtype = Literal["auto", "float32", "bfloat16", "float16"]

BFLOAT16_FROM: Final = 20_000_000
"""Parameters from which bfloat16 decodes faster than float32 on a CPU that computes in it. Below, the time
goes into calls and not into weights (`benchmarks/engine.py --dtypes`)."""


def resolve_dtype(dtype: Dtype, device: torch.device, parameters: int) -> Dtype:
    """The type to load a model in; ``auto`` remains only on a GPU, where it means the checkpoint's own.

    On a CPU, ``auto`` is bfloat16 if the CPU has instructions for it (AVX512-BF16 or AMX) and the model has
    at least ``BFLOAT16_FROM`` parameters, else float32. The choice depends on nothing else, so a model has
    the same type at every start on one machine.
    """
    if dtype != "auto" or device.type != "cpu":
        return dtype
    return "bfloat16" if parameters >= BFLOAT16_FROM and has_bfloat16() else "float32"


def has_bfloat16() -> bool:
    """Whether this machine's CPU has instructions for products of bfloat16 numbers."""
    return any(
        getattr(torch.cpu, name, bool)()  # a private name, which another version of torch may not have
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def without_weights(config: PretrainedConfig) -> nn.Module:
    """A causal LM of this configuration on the device ``meta``: its modules, and no memory for weights."""
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model: nn.Module = auto.from_config(config)
    return model


def count_parameters(config: PretrainedConfig) -> int:
    """Parameters of a causal LM of this configuration, tied ones once, without loading its weights."""
    model = without_weights(config)
    return sum(weight.numel() for weight in model.parameters())


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
