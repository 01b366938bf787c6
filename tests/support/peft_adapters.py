"""Adapters created by peft, with random weights instead of training."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_adapter(
    model: PreTrainedModel, directory: Path, *, base: Path, seed: int = 0, **config: Any
) -> PeftModel:
    """Wrap ``model``, randomise the trainable weights, save them to ``directory``; return the wrapped model.

    ``config`` are fields of LoraConfig; by default rank 4 on all linear layers of the decoder.
    """
    fields = {"r": 4, "lora_alpha": 8, "target_modules": ALL_LINEAR, "task_type": "CAUSAL_LM", **config}
    with warnings.catch_warnings():  # peft warns about tied weights and deprecated names
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, LoraConfig(**fields))
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for weight in wrapped.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(directory)
    return wrapped.eval()
