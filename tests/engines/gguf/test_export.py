from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from safetensors.torch import load_file

from service.deferral.policy import DeferralPolicy
from service.engines.base import EngineError, Sampling
from service.engines.checkpoint import default_sampling, quickstart
from service.engines.execute_head import ExecuteHead
from service.engines.gguf.export import export
from service.engines.gguf_metadata import WeightType
from tests.support.tiny_qwen3 import make_checkpoint, make_qwen2, make_tokenizer, save

NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "blk.1.attn_q.weight": "model.layers.1.self_attn.q_proj.weight",
    "blk.1.attn_k_norm.weight": "model.layers.1.self_attn.k_norm.weight",
    "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
}


def read(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize(
    ("kind", "type_name", "tolerance"),
    [("f32", "F32", 0.0), ("f16", "F16", 1e-3), ("bf16", "BF16", 8e-3), ("q8_0", "Q8_0", 2e-2)],
)
def test_weights_have_the_wanted_type_and_values(
    tmp_path: Path, kind: WeightType, type_name: str, tolerance: float
) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", hidden_size=64)
    export(checkpoint, tmp_path / "model.gguf", kind)
    tensors, weights = read(tmp_path / "model.gguf"), load_file(checkpoint / "model.safetensors")
    assert len(tensors) == len(weights)
    for name, original in NAMES.items():
        tensor, weight = tensors[name], weights[original].numpy()
        assert tensor.tensor_type.name == ("F32" if weight.ndim == 1 else type_name)
        assert [*reversed(tensor.shape)] == [*weight.shape]
        found = np.asarray(dequantize(tensor.data, tensor.tensor_type)).reshape(weight.shape)
        assert np.abs(found - weight).max() <= tolerance * np.abs(weight).max()


def test_matrices_that_q8_0_cannot_divide_are_f16(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")  # 48 wide, and 96 between the layers
    export(checkpoint, tmp_path / "model.gguf", "q8_0")
    tensors = read(tmp_path / "model.gguf")
    assert tensors["blk.0.ffn_up.weight"].tensor_type.name == "F16"
    assert tensors["blk.0.ffn_down.weight"].tensor_type.name == "Q8_0"


def test_biases_and_an_untied_head_are_written(tmp_path: Path) -> None:
    model = make_qwen2(make_tokenizer(), tie_word_embeddings=False)
    export(save(model, tmp_path / "model"), tmp_path / "model.gguf", "f32")
    tensors = read(tmp_path / "model.gguf")
    assert torch.equal(torch.tensor(tensors["output.weight"].data), model.lm_head.weight)
    bias = model.model.layers[1].self_attn.v_proj.bias
    assert torch.equal(torch.tensor(tensors["blk.1.attn_v.bias"].data), bias)


def test_policy_and_sampling_parameters_come_along(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "quickstart.gguf"
    assert export(quickstart(), path).has_policy
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "quickstart.gguf",
        "quickstart.gguf.deferral.json",
    ]
    assert DeferralPolicy.load(path) == DeferralPolicy.load(quickstart())
    assert default_sampling(path) == default_sampling(quickstart()) == Sampling(temperature=0.0)


def test_checkpoint_without_policy_gives_none(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert not export(tiny_checkpoint, tmp_path / "a.gguf").has_policy
    assert [file.name for file in tmp_path.iterdir()] == ["a.gguf"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "without full attention"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "rope scaling 'linear'",
        ),
    ],
)
def test_rejects_what_it_cannot_represent(tmp_path: Path, config: dict[str, object], message: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", **config)
    with pytest.raises(ValueError, match=message):
        export(checkpoint, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_rejects_an_execute_head(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    ExecuteHead("<tool_call>", (0.0,) * 48, 0.0).save(checkpoint)
    with pytest.raises(EngineError, match=r"execute head .* a GGUF file does not support"):
        export(checkpoint, tmp_path / "model.gguf")


def test_never_overwrites_and_leaves_nothing_behind(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    path = tmp_path / "model.gguf"
    path.write_text("mine")
    with pytest.raises(ValueError, match="already exists"):
        export(checkpoint, path)
    assert path.read_text() == "mine"
    (checkpoint / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(Exception, match=r"(?i)header"):
        export(checkpoint, tmp_path / "other.gguf")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model", "model.gguf"]
