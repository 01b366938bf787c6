from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen3Config

from service.deferral.policy import DeferralPolicy
from service.engines.adapters import fingerprint
from service.engines.model_config import count_parameters
from service.engines.tokenizer import HFTokenizer
from tests.support.tiny_qwen3 import make_model, make_tokenizer
from trainer.data.problems import DataError, ProblemStream
from trainer.training.checkpoints import staged, write_run_state
from trainer.training.config import ConfigError, TrainConfig
from trainer.training.dry_run import (
    count_adapter_parameters,
    describe_run,
    estimate_memory,
)
from trainer.training.lora import attach_adapter
from trainer.training.recipe_tables import LoraSettings
from trainer.training.setup import load_training_set


def config(tmp_path: Path, **changes: object) -> TrainConfig:
    data = tmp_path / "problems.jsonl"
    rows = [{"question": "1 + 1?", "answer": "2"}, {"question": "word " * 400, "answer": "2"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, object] = {
        "model": "m", "data": [str(data)], "run_dir": tmp_path / "run", "device": "cpu",
        "max_prompt_tokens": 500,
    }  # fmt: skip
    return TrainConfig.model_validate({**values, **changes})


def test_counts_parameters_without_allocation(tiny_checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    assert count_parameters(AutoConfig.from_pretrained(tiny_checkpoint)) == model.num_parameters()


def test_qwen3_8b_does_not_fit_80_gb(tmp_path: Path) -> None:
    model = Qwen3Config(
        vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, tie_word_embeddings=False,
        max_position_embeddings=40960,
    )  # fmt: skip
    assert count_parameters(model) == pytest.approx(8.19e9, rel=0.01)
    memory = estimate_memory(config(tmp_path, gradient_checkpointing=True), model, DeferralPolicy(), gpu=True)
    # 16 bytes per parameter, and 2 for autocast's copy.
    assert memory.weights_and_optimizer == pytest.approx(18 * 8.19e9, rel=0.01)
    assert memory.engine_weights == pytest.approx(16.4e9, rel=0.01)
    # 2 (key, value) x 36 layers x 8 heads x 128 x 2 bytes = 144 KiB per token.
    assert memory.kv_cache == 64 * 16000 * 147456


def test_shards_and_remote_servers_reduce_memory(tmp_path: Path, tiny_checkpoint: Path) -> None:
    model = AutoConfig.from_pretrained(tiny_checkpoint)
    alone = estimate_memory(config(tmp_path), model, DeferralPolicy(), gpu=False)
    shared = estimate_memory(config(tmp_path), model, DeferralPolicy(), gpu=False, shards=8)
    assert shared.weights_and_optimizer == 16 * count_parameters(model) // 8
    assert alone.weights_and_optimizer == 18 * count_parameters(model)
    assert shared.gathered == 4 * count_parameters(model)
    elsewhere = config(tmp_path, generation="vllm", generation_urls=("http://v",), weights_dir=tmp_path)
    memory = estimate_memory(elsewhere, model, DeferralPolicy(), gpu=False)
    assert (memory.engine_weights, memory.kv_cache, memory.gathered) == (0, 0, 0)
    assert memory.total == memory.weights_and_optimizer + memory.activations + memory.head
    actors = estimate_memory(config(tmp_path, ray={}), model, DeferralPolicy(), gpu=False)
    assert (actors.engine_weights, actors.kv_cache) == (0, 0)


def test_gradient_checkpointing_and_smaller_passes_reduce_memory(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    model = AutoConfig.from_pretrained(tiny_checkpoint)

    def activations(**changes: object) -> int:
        return estimate_memory(config(tmp_path, **changes), model, DeferralPolicy(), gpu=False).activations

    assert activations(gradient_checkpointing=True) < activations()
    assert activations(micro_batch_samples=1) * 4 == activations(micro_batch_samples=4)


@pytest.mark.parametrize("kind", [Qwen3Config, Qwen2Config])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_estimates_the_activations_that_a_model_stores(
    tmp_path: Path, kind: Any, dtype: str, lora: dict[str, int] | None
) -> None:
    model_config = kind(
        vocab_size=64, hidden_size=256, intermediate_size=1024, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=512,
    )  # fmt: skip
    half = dtype == "bfloat16"
    weights = torch.bfloat16 if half and lora else torch.float32
    auto_model: Any = AutoModelForCausalLM
    model: Any = auto_model.from_config(model_config, dtype=weights)
    if lora is not None:
        model = attach_adapter(model, LoraSettings.model_validate(lora), 3)
    base = model.model if lora is None else model.get_base_model().model

    def stored_bytes(tokens: int) -> int:
        parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        stored: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in parameters:
                stored[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        ids = torch.zeros(2, tokens, dtype=torch.long)
        mask = torch.ones_like(ids)
        mask[0, -4:] = 0
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=half),
        ):
            output = base(input_ids=ids, attention_mask=mask)
            total = sum(tensor.untyped_storage().nbytes() for tensor in stored.values())
        del output
        return total

    run = config(tmp_path, dtype=dtype, lora=lora, micro_batch_samples=2)
    policy = DeferralPolicy(max_episode_tokens=256)
    estimated = estimate_memory(run, model_config, policy, gpu=False).activations
    # The difference leaves out what does not depend on the tokens, such as copies of weights.
    assert estimated == pytest.approx(2 * (stored_bytes(256) - stored_bytes(128)), rel=0.25)


def test_prints_summary_without_side_effects(tmp_path: Path, tiny_checkpoint: Path) -> None:
    console = Console(file=io.StringIO(), width=250)
    settings = config(
        tmp_path, model=str(tiny_checkpoint), method="grpo-immediate", policy={"prompt": "brief-v1"},
        validation={"data": "quickstart-held-out:3", "samples": 2},
    )  # fmt: skip
    describe_run(settings, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for piece in (
        "grpo-immediate, hierarchy weight 0.0",
        "1 problems (skipped: 1 too long, 0 without an answer, 0 with a bad gold answer)",
        "up to 48 prompts x 8 samples, 16 groups kept",
        "code runs at every block",
        "3 validation problems, 2 samples each, every 10 steps",
        "a checkpoint every 10 steps, 2 and the best one kept",
        "200, each of 128 samples in passes of 4",
        "peak",
        "GiB",
    ):
        assert piece in text
    assert not settings.run_dir.exists()


def test_rejects_run_that_cannot_resume(tmp_path: Path, tiny_checkpoint: Path) -> None:
    settings = config(tmp_path, model=str(tiny_checkpoint), policy={"prompt": "brief-v1"}, seed=1)
    with staged(settings.run_dir / "checkpoints" / "checkpoint-3") as staging:
        write_run_state(staging, settings, "other problems", skipped_steps=0)
    with pytest.raises(ConfigError, match=r"seed is 2, but the run in .* was started with 1"):
        describe_run(settings.model_copy(update={"seed": 2}), Console(file=io.StringIO()))
    with pytest.raises(ConfigError, match="data: the problems differ"):
        describe_run(settings, Console(file=io.StringIO()))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"run_dir: .*file is a file"):
        describe_run(settings.model_copy(update={"run_dir": tmp_path / "file"}), Console(file=io.StringIO()))


def test_adapter_of_another_base_is_rejected(tmp_path: Path, tiny_checkpoint: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "base.json").write_text('{"sha256": "0000"}')
    settings = config(
        tmp_path, model=str(tiny_checkpoint), lora={"adapter": adapter}, policy={"prompt": "brief-v1"}
    )
    with pytest.raises(ValueError, match="was trained on another base, with the fingerprint 0000"):
        describe_run(settings, Console(file=io.StringIO()))
    (adapter / "base.json").write_text(json.dumps({"sha256": fingerprint(tiny_checkpoint)}))
    describe_run(settings, Console(file=io.StringIO()))


def test_resumed_run_with_another_model_is_rejected(tmp_path: Path, tiny_checkpoint: Path) -> None:
    settings = config(tmp_path, model=str(tiny_checkpoint), kl_weight=0.1, policy={"prompt": "brief-v1"})
    policy = settings.resolve_policy(tiny_checkpoint)
    data = load_training_set(settings, HFTokenizer(str(tiny_checkpoint)), policy, "")
    problems = ProblemStream(data.problems, seed=settings.seed).fingerprint
    with staged(settings.run_dir / "checkpoints" / "checkpoint-3") as staging:
        write_run_state(staging, settings, problems, skipped_steps=0, base="f" * 64)
    with pytest.raises(ConfigError, match="model: its weights differ from those"):
        describe_run(settings, Console(file=io.StringIO()))


def test_adapter_is_not_compared_without_weights(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "base.json").write_text('{"sha256": "0000"}')
    model = shutil.copytree(
        tiny_checkpoint, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")
    )
    settings = config(
        tmp_path, model=str(model), lora={"adapter": tmp_path / "adapter"},
        policy={"prompt": "brief-v1"},
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=200)
    describe_run(settings, console)
    assert "are not downloaded, so they were not compared" in console.file.getvalue()  # type: ignore[attr-defined]


def test_missing_data_fails_like_the_run(tmp_path: Path, tiny_checkpoint: Path) -> None:
    settings = config(tmp_path, model=str(tiny_checkpoint), data=[str(tmp_path / "nowhere.jsonl")])
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        describe_run(settings, Console(file=io.StringIO()))


def test_rewards_are_loaded_and_listed(tmp_path: Path, tiny_checkpoint: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    rewards = [{"name": "math"}, {"name": "length", "weight": 0.5}]
    policy = {"prompt": "brief-v1"}
    describe_run(config(tmp_path, model=str(tiny_checkpoint), rewards=rewards, policy=policy), console)
    assert "1 x math, 0.5 x length" in console.file.getvalue()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"rewards\.0\.name: cannot import module 'no_such_module'"):
        describe_run(config(tmp_path, rewards=[{"name": "no_such_module:f"}]), console)


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_are_counted_without_making_them(tied: bool) -> None:
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, tie_word_embeddings=tied)
    for settings in (LoraSettings(rank=4), LoraSettings(rank=2, targets=("q_proj",), train_marker=False)):
        counted = count_adapter_parameters(model.config, settings)
        adapted = attach_adapter(make_model(tokenizer, tie_word_embeddings=tied), settings, 5)
        assert counted == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_an_adapter_needs_less_memory_and_kl_of_all_weights_more(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    model = AutoConfig.from_pretrained(tiny_checkpoint)
    sizes = [
        estimate_memory(config(tmp_path, **fields), model, DeferralPolicy(), gpu=True)
        for fields in ({"lora": {"rank": 4}}, {}, {"kl_weight": 0.1})
    ]
    adapter, whole, with_copy = (size.weights_and_optimizer for size in sizes)
    assert adapter < whole < with_copy
