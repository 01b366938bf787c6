"""Plain LoRA adapters for the embedded engine: read from disk, then attached to the layers of a model."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PretrainedConfig

from service.engines.base import EngineError
from service.engines.transformers.weight_loading import AdapterLinear, AdapterRows, Lora, without_weights

LorasByLayer = Mapping[str, Mapping[str, Lora]]
"""By the layer's name in the model, then by the adapter's name."""

_PREFIX = "base_model.model."
_HINT = "merge it instead: --model {path}"


def read_adapters(
    adapters: Mapping[str, Path], config: PretrainedConfig, device: torch.device, dtype: torch.dtype
) -> LorasByLayer:
    """Read the adapters and check that they fit a model of this configuration.

    Args:
        adapters: directories with ``adapter_config.json`` and ``adapter_model.safetensors``, by name.
        config: of the model.
        device, dtype: where and in what the model computes; the factors are stored in the same.

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
    """Wrap the layers that an adapter changes. ``rows`` says which tokens of a step each adapter acts on."""
    for layer, loras in layers.items():
        model.set_submodule(layer, AdapterLinear(model.get_submodule(layer), loras, rows))


def _read(path: Path, config: PretrainedConfig) -> dict[str, Lora]:
    """Low-rank factors by layer, float32.

    peft decides which layers the adapter's configuration means and how they are scaled: it is applied to a
    model without weights.
    """
    from peft import LoraConfig, PeftConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    if not (path / "adapter_config.json").is_file():
        raise FileNotFoundError("there is no adapter_config.json in it")
    lora_config = PeftConfig.from_pretrained(str(path))
    if not isinstance(lora_config, LoraConfig):
        raise TypeError(f"it is a {lora_config.peft_type} adapter, not LoRA; {_HINT.format(path=path)}")
    if lora_config.layer_replication or getattr(lora_config, "alora_invocation_tokens", None):
        raise ValueError("layer_replication and activated LoRA are not supported")
    tensors = load_file(path / "adapter_model.safetensors")
    model = without_weights(config)
    with warnings.catch_warnings():  # of peft, about names in transformers
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
