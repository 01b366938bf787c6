"""Memory of Qwen3 models, computed from their shapes and compared with models without weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, Qwen3Config

from service.doctor import gpu_plan, report
from service.doctor.gpu_plan import AWQ, BFLOAT16, FP8, GIB, SIZES, Qwen3Size, fit, plans, recommend
from service.engines.base import EngineError
from service.engines.model_config import without_weights
from service.server.settings import Settings


@pytest.mark.parametrize("size", SIZES[:4], ids=lambda size: size.name)
def test_parameters_are_those_of_the_model(size: Qwen3Size) -> None:
    config = Qwen3Config(
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=128,
        vocab_size=151_936,
        tie_word_embeddings=size.tied,
    )
    parameters = list(without_weights(config).named_parameters())
    assert size.parameters == sum(weight.numel() for _, weight in parameters)
    linear = [weight for name, weight in parameters if name.endswith("_proj.weight")]
    assert size.linear_parameters == sum(weight.numel() for weight in linear)
    # AWQ and GPTQ replace a weight [out, in] by packed weights, zero points and scales of groups of 128.
    packed = sum(w.numel() // 2 + w.numel() // 128 // 2 + w.numel() // 128 * 2 for w in linear)
    assert size.weight_bytes(AWQ) == pytest.approx(packed + 2 * size.other_parameters, rel=1e-6)
    assert size.weight_bytes(BFLOAT16) == 2 * size.parameters


@pytest.mark.parametrize(
    ("gigabytes", "model"),
    [
        (6, "Qwen3-1.7B-FP8"),
        (8, "Qwen3-4B-AWQ"),
        (12, "Qwen3-8B-AWQ"),
        (16, "Qwen3-14B-AWQ"),
        (24, "Qwen3-14B-FP8"),
    ],
)
def test_recommends_the_largest_model_with_room_for_a_context(gigabytes: int, model: str) -> None:
    plan = recommend(gigabytes * GIB)
    assert plan is not None
    assert plan.model == f"Qwen/{model}"
    used = plan.weight_bytes + plan.tokens * plan.size.token_bytes + gpu_plan.OVERHEAD_BYTES
    assert used <= 0.9 * gigabytes * GIB < used + plan.size.token_bytes
    assert 16_384 <= plan.context <= min(plan.tokens, 32_768)
    larger = [other for other in plans(gigabytes * GIB) if other.size.hidden > plan.size.hidden]
    assert all(other.tokens < 16_384 for other in larger)


def test_formats_depend_on_the_gpu() -> None:
    turing = recommend(24 * GIB, (7, 5))
    assert turing is not None
    assert turing.weights is AWQ
    assert {plan.weights for plan in plans(24 * GIB, (8, 6))} == {BFLOAT16, FP8, AWQ}
    assert recommend(24 * GIB, (6, 1)) is None
    assert "no Qwen3 model fits" in gpu_plan.suggest_for_gpu(2 * GIB, (8, 9)).found


def test_suggestion_has_the_command_with_its_settings() -> None:
    found = gpu_plan.suggest_for_gpu(12 * GIB, (8, 6))
    assert found.verdict == "ok"
    assert "5.7 GiB of weights" in found.found
    assert found.hint == "IHGRPO_MAX_CONTEXT=29696 ih-grpo serve --engine vllm --model Qwen/Qwen3-8B-AWQ"


def test_suggestion_without_a_gpu_depends_on_the_memory() -> None:
    assert "Qwen3-1.7B" in gpu_plan.suggest_for_memory(16 * GIB).hint
    assert "Qwen3-0.6B" in gpu_plan.suggest_for_memory(8 * GIB).hint
    assert gpu_plan.suggest_for_memory(GIB).hint == ""


@pytest.fixture
def quantised(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "quantised"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_documented_table_is_the_computed_one() -> None:
    page = (Path(__file__).parents[2] / "docs/guides/vllm.md").read_text(encoding="utf-8")
    for gigabytes in (8, 12, 16, 24):
        plan = recommend(gigabytes * GIB)
        assert plan is not None
        numbers = f"{plan.weight_bytes / GIB:.1f} | {plan.tokens:,}"
        assert f"| {gigabytes} GiB | {plan.model} | {numbers} | `{plan.command}` |" in page


def test_checks_a_checkpoint_against_the_memory_of_the_gpu(tiny_checkpoint: Path) -> None:
    assert fit(tiny_checkpoint, 4 * GIB, 8 * GIB).verdict == "ok"
    config: dict[str, Any] = json.loads((tiny_checkpoint / "config.json").read_text())
    token = 4 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    room = int(0.9 * 8 * GIB) - GIB
    little = fit(tiny_checkpoint, room - 1500 * token, 8 * GIB)
    if config["max_position_embeddings"] > 1500:
        assert (little.verdict, little.hint) == ("warn", "set max_context to 1024 or less")
    none = fit(tiny_checkpoint, room, 8 * GIB)
    assert none.verdict == "fail"
    assert "quantised" in none.hint


def test_width_of_heads_is_computed_if_the_checkpoint_does_not_state_it(tmp_path: Path) -> None:
    from transformers import Qwen2Config

    config = Qwen2Config(
        hidden_size=64, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3
    )  # 16 wide
    config.save_pretrained(tmp_path)
    token = 2 * 3 * 2 * 16 * 2
    room = int(0.9 * 8 * GIB) - GIB
    assert "cache for about 2,000 tokens" in fit(tmp_path, room - 2000 * token, 8 * GIB).found


def test_quantised_checkpoints_need_vllm(quantised: Path) -> None:
    from service.engines.settings import TransformersSettings
    from service.engines.transformers.runner import ModelRunner

    assert gpu_plan.quantization(quantised) == "awq"
    settings = Settings(model=str(quantised), engine="transformers", sandbox="in-process")
    found = {result.check: result for result in report._weights(settings, quantised)}
    assert (found["quantisation"].verdict, found["quantisation"].hint) == ("fail", "set engine to vllm")
    with pytest.raises(EngineError, match=r"is quantised \(awq\)"):
        ModelRunner(
            TransformersSettings(model=str(quantised)), AutoConfig.from_pretrained(quantised), max_length=64
        )
