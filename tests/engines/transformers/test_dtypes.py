from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from transformers import AutoConfig, Qwen2Config

from service.engines.checkpoint import quickstart
from service.engines.model_config import count_parameters
from service.engines.settings import TransformersSettings, VLLMSettings
from service.engines.transformers import weight_loading as precision
from service.engines.transformers.engine import TransformersEngine
from service.engines.transformers.weight_loading import (
    BFLOAT16_FROM,
    has_bfloat16,
    resolve_dtype,
)
from service.engines.vllm.engine import VLLMEngine
from tests.support.tiny_qwen3 import make_checkpoint, make_model, make_qwen2, make_tokenizer

CPU, GPU = torch.device("cpu"), torch.device("cuda:1")


@pytest.fixture(params=[False, True])
def with_bfloat16(request: pytest.FixtureRequest) -> Iterator[bool]:
    with patch.object(precision, "has_bfloat16", lambda: request.param):
        yield request.param


@pytest.mark.parametrize("parameters", [1, BFLOAT16_FROM - 1, BFLOAT16_FROM, 10**10])
def test_auto_dtype_on_a_cpu(with_bfloat16: bool, parameters: int) -> None:
    large = parameters >= BFLOAT16_FROM
    assert resolve_dtype("auto", CPU, parameters) == ("bfloat16" if large and with_bfloat16 else "float32")


def test_explicit_dtype_is_kept(with_bfloat16: bool) -> None:
    for parameters in (1, 10**10):
        assert resolve_dtype("float32", CPU, parameters) == "float32"
        assert resolve_dtype("bfloat16", CPU, parameters) == "bfloat16"
        assert resolve_dtype("auto", GPU, parameters) == "auto"


@pytest.mark.parametrize("name", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_either_bfloat16_instruction_set_is_enough(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for other in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, other, lambda: False, raising=False)
    assert not has_bfloat16()
    monkeypatch.setattr(torch.cpu, name, lambda: True)
    assert has_bfloat16()
    monkeypatch.delattr(torch.cpu, name)
    assert not has_bfloat16()


@pytest.mark.parametrize("make", [make_model, make_qwen2])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_without_weights(make: object, tied: bool) -> None:
    model = make(make_tokenizer(), tie_word_embeddings=tied)  # type: ignore[operator]
    assert count_parameters(model.config) == sum(weight.numel() for weight in model.parameters())


def test_parameter_counts_of_known_models() -> None:
    half = Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    assert count_parameters(half) == 494_032_768
    assert count_parameters(AutoConfig.from_pretrained(quickstart())) < BFLOAT16_FROM


async def test_all_engines_resolve_dtype_the_same_way(tmp_path: Path) -> None:
    model = str(make_checkpoint(tmp_path))
    assert VLLMEngine(VLLMSettings(model=model))._dtype(is_cpu=True) == "float32"
    assert VLLMEngine(VLLMSettings(model=model))._dtype(is_cpu=False) == "auto"
    assert VLLMEngine(VLLMSettings(model=model, dtype="half"))._dtype(is_cpu=True) == "half"
    with patch.object(precision, "has_bfloat16", lambda: True), patch.object(precision, "BFLOAT16_FROM", 1):
        assert VLLMEngine(VLLMSettings(model=model))._dtype(is_cpu=True) == "bfloat16"
        for dtype, expected in (("auto", torch.bfloat16), ("float32", torch.float32)):
            engine = TransformersEngine(TransformersSettings(model=model, device="cpu", dtype=dtype))  # type: ignore[arg-type]
            await engine.start()
            assert engine._runner is not None
            assert engine._runner.dtype == expected
            await engine.stop()
