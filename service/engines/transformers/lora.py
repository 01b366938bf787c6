"""Plain LoRA adapters for the embedded engine: read from disk, then attached to the layers of a model."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PretrainedConfig

from service.engines.base import EngineError
from service.engines.model_config import without_weights


@dataclass(slots=True)
class AdapterRows:
    """Tokens of the current step by adapter: the row indices [n], int64, that each adapter applies to.

    The runner sets ``groups`` before a forward pass; the layers read it during the pass.
    """

    groups: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lora:
    """One adapter's part of one layer: ``a`` [in_features, r] and ``b`` [r, out_features], scaled."""

    a: Tensor
    b: Tensor


class AdapterLinear(nn.Module):
    """A linear layer that adds to each token the low-rank product of the token's adapter.

    Args:
        base: the layer itself.
        loras: by adapter name; without the adapters that do not change this layer.
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


LorasByLayer = Mapping[str, Mapping[str, Lora]]
"""Keys: the layer's name in the model, then the adapter's name."""

_PREFIX = "base_model.model."
_HINT = "merge it instead: --model {path}"


def read_adapters(
    adapters: Mapping[str, Path], config: PretrainedConfig, device: torch.device, dtype: torch.dtype
) -> LorasByLayer:
    """Read the adapters and check that they fit a model of this configuration.

    Args:
        adapters: directories with ``adapter_config.json`` and ``adapter_model.safetensors``, by name.
        config: configuration of the model.
        device, dtype: the model's; the factors are converted to them.

    Raises:
        EngineError: a file is missing or unreadable, a shape differs from the model's, or the adapter holds
            more than low-rank factors of linear layers inside the decoder.
    """
    layers: defaultdict[str, dict[str, Lora]] = defaultdict(dict)
    for name, path in adapters.items():
        try:
            loras = _read(path, config)
        except ModuleNotFoundError as error:
            raise EngineError(f"LoRA adapters need {error.name}: pip install 'ih-grpo[cpu]'") from error
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise EngineError(f"adapter {name!r}: {path} can't be served: {error}") from error
        for layer, lora in loras.items():
            layers[layer][name] = Lora(lora.a.to(device, dtype), lora.b.to(device, dtype))
    return layers


def attach(model: nn.Module, layers: LorasByLayer, rows: AdapterRows) -> None:
    """Wrap the layers that an adapter changes. ``rows`` maps each adapter to its tokens of a step."""
    for layer, loras in layers.items():
        model.set_submodule(layer, AdapterLinear(model.get_submodule(layer), loras, rows))


def _read(path: Path, config: PretrainedConfig) -> dict[str, Lora]:
    """Low-rank factors by layer, float32.

    peft decides which layers the adapter's configuration selects and how they are scaled: it is applied to a
    model without weights.
    """
    from peft import LoraConfig, PeftConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    if not (path / "adapter_config.json").is_file():
        raise FileNotFoundError("adapter_config.json is missing")
    lora_config = PeftConfig.from_pretrained(str(path))
    if not isinstance(lora_config, LoraConfig):
        raise TypeError(f"it is a {lora_config.peft_type} adapter, not LoRA; {_HINT.format(path=path)}")
    if lora_config.layer_replication or getattr(lora_config, "alora_invocation_tokens", None):
        raise ValueError("layer_replication and activated LoRA are not supported")
    tensors = load_file(path / "adapter_model.safetensors")
    model = without_weights(config)
    with warnings.catch_warnings():  # peft warns about names in transformers
        warnings.simplefilter("ignore")
        inject_adapter_in_model(lora_config, model, low_cpu_mem_usage=True)
    loras = {}
    modules: Iterable[tuple[str, Any]] = model.named_modules()
    for layer, module in modules:
        if isinstance(module, LoraLayer) and "default" in module.scaling:
            if getattr(module, "lora_variant", None) or not layer.startswith("model.layers."):
                raise ValueError(f"{layer} is more than plain LoRA; {_HINT.format(path=path)}")
            down: Any = module.lora_A["default"]
            up: Any = module.lora_B["default"]
            a = _take(tensors, f"{layer}.lora_A.weight", down.weight.shape)
            b = _take(tensors, f"{layer}.lora_B.weight", up.weight.shape)
            loras[layer] = Lora(a.T.contiguous(), b.T.contiguous() * module.scaling["default"])
    if tensors:
        raise ValueError(f"{min(tensors)} is more than plain LoRA; {_HINT.format(path=path)}")
    return loras


def _take(tensors: dict[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    tensor = tensors.pop(_PREFIX + name, None)
    if tensor is None:
        raise KeyError(f"{name} is missing in adapter_model.safetensors")
    if tensor.shape != shape:
        raise ValueError(f"{name} is {list(tensor.shape)}, the model needs {list(shape)}")
    return tensor.float()
