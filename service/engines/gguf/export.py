"""Write a checkpoint as a GGUF file: Qwen2, Qwen2.5 and Qwen3, dense.

The file contains everything that the engine and other programs read: weights, vocabulary, chat template,
default sampling parameters, and the checkpoint's own ``tokenizer.json``, so that text becomes the same ids as
with the checkpoint. The policy is a file beside it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from service.deferral.policy import FILE_NAME, DeferralPolicy
from service.engines.checkpoint import default_sampling
from service.engines.execute_head import reject_execute_head
from service.engines.gguf.vocabulary import HF_JSON, pattern_name
from service.engines.gguf_metadata import WeightType, sampling_metadata
from service.engines.model_config import head_dim

_TYPES: Final[dict[WeightType, gguf.GGMLQuantizationType]] = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
_FILE_TYPES: Final[dict[WeightType, gguf.LlamaFileType]] = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_ARCHITECTURES: Final = {"qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}
_BLOCK: Final = 32
"""Values that share a scale in Q8_0. Matrices with other row lengths are written as F16."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A written file."""

    path: Path
    has_policy: bool
    """Whether the checkpoint has a policy, which was copied beside the file."""
    is_split_known: bool
    """Whether llama.cpp knows how this tokenizer splits text. If not, only this project reads the tokenizer
    correctly, from ``tokenizer.json`` in the file."""


def export(checkpoint: Path, path: Path, kind: WeightType = "f16") -> Exported:
    """Write the checkpoint in the directory ``checkpoint`` to the new file ``path``, completely or not at
    all.

    Args:
        checkpoint: a full model in the Hugging Face format.
        path: the file; the policy is written to ``PATH.deferral.json``.
        kind: type of the matrices. Vectors, such as norms and biases, are float32.

    Raises:
        ValueError: ``path`` exists, or the checkpoint can't be represented; the message says why.
        EngineError: the checkpoint has an execute head.
    """
    if path.exists():
        raise ValueError(f"{path} already exists: choose another file")
    config = AutoConfig.from_pretrained(checkpoint)
    _check(checkpoint, config)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, staging = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(descriptor)
    try:
        writer = gguf.GGUFWriter(None, config.model_type)
        _add_architecture(writer, checkpoint, config, kind)
        is_split_known = _add_tokenizer(writer, checkpoint, config.vocab_size)
        _write(writer, checkpoint, config, kind, Path(staging))
        Path(staging).chmod(0o644)
        Path(staging).rename(path)
    finally:
        Path(staging).unlink(missing_ok=True)
    has_policy = (checkpoint / FILE_NAME).is_file()
    if has_policy:
        DeferralPolicy.load(checkpoint).save(path)
    return Exported(path, has_policy, is_split_known)


def _check(checkpoint: Path, config: PretrainedConfig) -> None:
    if config.model_type not in _ARCHITECTURES:
        raise ValueError(
            f"{checkpoint} has the architecture {config.model_type}; only {' and '.join(_ARCHITECTURES)} "
            "can be written as GGUF. For others use llama.cpp's convert_hf_to_gguf.py"
        )
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        raise ValueError(f"{checkpoint} has layers without full attention, which can't be written as GGUF")
    if (rope := config.rope_parameters.get("rope_type", "default")) not in ("default", "yarn"):
        raise ValueError(f"{checkpoint} has rope scaling {rope!r}, which can't be written as GGUF")
    if config.hidden_act != "silu":
        raise ValueError(f"{checkpoint} has the activation {config.hidden_act!r}, not silu")
    reject_execute_head(str(checkpoint), "a GGUF file")


def _add_architecture(
    writer: gguf.GGUFWriter, checkpoint: Path, config: PretrainedConfig, kind: WeightType
) -> None:
    width = head_dim(config)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(checkpoint.resolve().name)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope: dict[str, Any] = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    for key, value in sampling_metadata(default_sampling(checkpoint)).items():
        if isinstance(value, int):
            writer.add_int32(key, value)
        else:
            writer.add_float32(key, value)


def _add_tokenizer(writer: gguf.GGUFWriter, checkpoint: Path, size: int) -> bool:
    """Add the vocabulary, padded to ``size`` tokens. Return whether llama.cpp knows how to split text."""
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    text = tokenizer.backend_tokenizer.to_str()
    state = json.loads(text)
    if state["model"]["type"] != "BPE" or (state["decoder"] or {}).get("type") != "ByteLevel":
        raise ValueError(f"{checkpoint}: only byte-level BPE tokenizers can be written as GGUF")
    tokens = [f"[PAD{token_id}]" for token_id in range(size)]
    kinds = [gguf.TokenType.UNUSED] * size
    for token, token_id in state["model"]["vocab"].items():
        tokens[token_id], kinds[token_id] = token, gguf.TokenType.NORMAL
    for added in state["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    name = pattern_name(state["pre_tokenizer"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name or "default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = state["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for add, token_id in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token_id is not None:
            add(token_id)
    writer.add_add_bos_token(False)
    writer.add_string(HF_JSON, text)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)
    return name is not None


def _write(
    writer: gguf.GGUFWriter, checkpoint: Path, config: PretrainedConfig, kind: WeightType, path: Path
) -> None:
    """Write the file. The weights are read twice, one at a time: first their shapes, then their values."""
    for name, weight in _weights(checkpoint, config):
        type_ = _type(weight, kind)
        shape = list(weight.shape)
        values, size = gguf.GGML_QUANT_SIZES[type_]
        dtype = np.dtype(np.float32)  # not read, because the type is given
        writer.add_tensor_info(name, shape, dtype, weight.numel() // values * size, raw_dtype=type_)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, weight in _weights(checkpoint, config):
        writer.write_tensor_data(_values(weight, _type(weight, kind)))
    writer.close()


def _type(weight: torch.Tensor, kind: WeightType) -> gguf.GGMLQuantizationType:
    if weight.ndim == 1:
        return gguf.GGMLQuantizationType.F32
    if kind == "q8_0" and weight.shape[-1] % _BLOCK:
        return gguf.GGMLQuantizationType.F16
    return _TYPES[kind]


def _values(weight: torch.Tensor, kind: gguf.GGMLQuantizationType) -> np.ndarray[Any, Any]:
    if kind == gguf.GGMLQuantizationType.BF16:
        return weight.bfloat16().view(torch.int16).numpy()
    if kind == gguf.GGMLQuantizationType.F16:
        return weight.half().numpy()
    values = weight.float().numpy()
    return values if kind == gguf.GGMLQuantizationType.F32 else gguf.quants.quantize(values, kind)


def _weights(checkpoint: Path, config: PretrainedConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each weight with its name in the file.

    Raises:
        ValueError: a weight is unknown, or there are none.
    """
    names = gguf.get_tensor_name_map(_ARCHITECTURES[config.model_type], config.num_hidden_layers)
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{checkpoint} has no *.safetensors: copy its weights as well")
    for file in files:
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118  not a mapping
                if key == "lm_head.weight" and config.tie_word_embeddings:
                    continue
                if (name := names.get_name(key, try_suffixes=(".weight", ".bias"))) is None:
                    raise ValueError(f"{file} has the weight {key}, which has no place in a GGUF file")
                yield name, weights.get_tensor(key)
