"""Adapters of tiny models: ties, the marker's row, merging, saving and loading."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, distributed
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from service.engines.adapters import fingerprint, merged
from tests.support.tiny_qwen3 import make_checkpoint, make_model, make_qwen2, make_tokenizer
from trainer.training.chunked_lm_head import PolicyModel
from trainer.training.lora import (
    LoraError,
    ReferencePolicy,
    attach_adapter,
    base_name,
    inspect_marker_row,
    load_adapter,
    merged_weights,
    parameter_groups,
    save_adapter,
    trained_rows,
)
from trainer.training.recipe_tables import LoraSettings

TOKENIZER = make_tokenizer()
MARKER = TOKENIZER.get_vocab()["<tool_call>"]
IDS = torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(0))
IDS[0, 3] = IDS[1, 7] = MARKER


def randomize(model: PeftModel, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=IDS).logits
    return result


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("make", [make_model, make_qwen2])
def test_merged_weights_compute_what_the_adapter_computes(make: Any, tied: bool) -> None:
    model = attach_adapter(make(TOKENIZER, tie_word_embeddings=tied), LoraSettings(rank=4), MARKER)
    randomize(model)
    plain = make(TOKENIZER, tie_word_embeddings=tied)
    before = logits(plain)
    weights = merged_weights(model)
    assert weights.keys() == plain.state_dict().keys()
    assert (weights["model.embed_tokens.weight"].data_ptr() == weights["lm_head.weight"].data_ptr()) is tied
    plain.load_state_dict(weights)
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-4, rtol=1e-4)
    assert (logits(model) - before).abs().max() > 0.1


def test_a_new_adapter_changes_nothing_and_freezes_the_model() -> None:
    plain = make_model(TOKENIZER)
    before = logits(plain)
    model = attach_adapter(plain, LoraSettings(rank=4), MARKER)
    assert torch.equal(logits(model), before)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(".lora_" in name or "trainable_tokens_delta" in name for name in trained)
    assert sum("trainable_tokens_delta" in name for name in trained) == 1
    assert len(trained) == 1 + 2 * 7 * 2  # the row; two factors for seven layers in two blocks
    assert not any("lm_head" in name for name in trained)


def test_the_adapter_is_float32_over_bfloat16_weights() -> None:
    model = attach_adapter(make_model(TOKENIZER).bfloat16(), LoraSettings(rank=4), MARKER)
    types = {(p.dtype, p.requires_grad) for p in model.parameters()}
    assert types == {(torch.bfloat16, False), (torch.float32, True)}
    assert {tensor.dtype for tensor in merged_weights(model).values()} == {torch.bfloat16}


def test_the_same_seed_draws_the_same_adapter() -> None:
    one, same, other = (
        attach_adapter(make_model(TOKENIZER), LoraSettings(rank=4), MARKER, seed=seed) for seed in (1, 1, 2)
    )
    first = {name: p for name, p in one.named_parameters() if p.requires_grad}
    assert all(torch.equal(p, first[name]) for name, p in same.named_parameters() if p.requires_grad)
    assert not all(torch.equal(p, first[name]) for name, p in other.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("tied", [True, False])
def test_the_row_gets_the_gradient_of_embedding_and_head(tied: bool) -> None:
    """Against autograd through whole changed weights."""
    base = make_model(TOKENIZER, tie_word_embeddings=tied)
    model = attach_adapter(base, LoraSettings(rank=4), MARKER)
    randomize(model)
    targets = torch.ones_like(IDS, dtype=torch.bool)
    targets[:, 0] = False
    output = PolicyModel(model.get_base_model())(IDS, torch.ones_like(IDS), targets, MARKER)
    loss = output.log_probs.sum() + output.execute_logits.sum()
    ours = {
        name: torch.autograd.grad(loss, p, retain_graph=True)[0]
        for name, p in model.named_parameters()
        if "trainable_tokens_delta" in name
    }
    plain = make_model(TOKENIZER, tie_word_embeddings=tied)
    plain.load_state_dict(merged_weights(model))
    states = plain(input_ids=IDS).logits[:, :-1]
    log_probs = states.log_softmax(-1).gather(2, IDS[:, 1:, None]).sum()
    loss = log_probs + states[..., MARKER].sum()
    weights = [plain.model.embed_tokens.weight] + ([] if tied else [plain.lm_head.weight])
    expected = [gradient[MARKER] for gradient in torch.autograd.grad(loss, weights)]
    assert len(ours) == len(expected)
    for (name, gradient), wanted in zip(ours.items(), expected, strict=True):
        torch.testing.assert_close(gradient[0], wanted, atol=2e-3, rtol=1e-3, msg=name)


def test_reports_a_row_that_was_never_trained() -> None:
    model = make_model(TOKENIZER, vocab_size=len(TOKENIZER) + 8)
    with torch.no_grad():
        weight = model.model.embed_tokens.weight
        weight[len(TOKENIZER) :] = torch.randn(48, generator=torch.Generator().manual_seed(0))
        found = inspect_marker_row(model, MARKER, len(TOKENIZER))
        assert found.unused == 8
        assert found.is_distinct
        assert "is distinct from 8 unused rows" in found.describe("<tool_call>", None)
        weight[MARKER] = weight[-1] * 1.0001
    found = inspect_marker_row(model, MARKER, len(TOKENIZER))
    assert found.cosine == pytest.approx(1.0, abs=1e-5)
    assert not found.is_distinct
    assert "never trained; it is trained with learning rate 0.02" in found.describe("<tool_call>", 0.02)
    assert "can't learn to write it" in found.describe("<tool_call>", None)


def test_a_model_without_unused_rows_is_not_judged() -> None:
    found = inspect_marker_row(make_model(TOKENIZER), MARKER, len(TOKENIZER))
    assert (found.unused, found.cosine, found.is_distinct) == (0, None, True)
    assert "can't be compared" in found.describe("<tool_call>", 1e-3)


def test_the_row_has_a_learning_rate_of_its_own() -> None:
    model = attach_adapter(make_model(TOKENIZER), LoraSettings(rank=4), MARKER)
    factors, row = parameter_groups(model, learning_rate=3e-4, marker_lr=2e-2, weight_decay=0.1)
    assert (factors["lr"], row["lr"]) == (3e-4, 2e-2)
    assert (factors["weight_decay"], row["weight_decay"]) == (0.1, 0.0)
    assert [tuple(p.shape) for p in row["params"]] == [(1, 48)]
    frozen = attach_adapter(make_model(TOKENIZER), LoraSettings(train_marker=False), MARKER)
    assert len(parameter_groups(frozen, learning_rate=1, marker_lr=1, weight_decay=0)) == 1
    assert trained_rows(frozen.get_base_model().get_input_embeddings()) is None


def test_saves_what_the_server_merges(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base")
    model = attach_adapter(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraSettings(rank=4), MARKER
    )
    randomize(model)
    directory = tmp_path / "adapter"
    directory.mkdir()
    save_adapter(model, directory, base_name=None, fingerprint=fingerprint(base))
    config = json.loads((directory / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == ""
    assert str(tmp_path) not in (directory / "adapter_config.json").read_text()
    assert not (directory / "README.md").exists()
    served = AutoModelForCausalLM.from_pretrained(merged(directory, base), dtype=torch.float32)
    torch.testing.assert_close(logits(served), logits(model), atol=1e-4, rtol=1e-4)


def test_loads_the_values_that_it_saved(tmp_path: Path) -> None:
    one, other = (attach_adapter(make_model(TOKENIZER), LoraSettings(rank=4), MARKER) for _ in range(2))
    randomize(one)
    save_adapter(one, tmp_path, base_name="some/model")
    load_adapter(other, tmp_path)
    assert torch.equal(logits(one), logits(other))
    continued = attach_adapter(make_model(TOKENIZER), LoraSettings(adapter=tmp_path), MARKER)
    assert torch.equal(logits(one), logits(continued))
    assert any(p.requires_grad for p in continued.parameters())
    assert all(
        tensor.dtype == torch.float32 for tensor in load_file(tmp_path / "adapter_model.safetensors").values()
    )


def test_rejects_an_adapter_of_another_shape(tmp_path: Path) -> None:
    save_adapter(
        attach_adapter(make_model(TOKENIZER), LoraSettings(rank=4), MARKER), tmp_path, base_name=None
    )
    other = attach_adapter(make_model(TOKENIZER), LoraSettings(rank=8), MARKER)
    with pytest.raises(LoraError, match="does not fit the recipe"):
        load_adapter(other, tmp_path)
    other = attach_adapter(make_model(TOKENIZER), LoraSettings(rank=4, train_marker=False), MARKER)
    with pytest.raises(LoraError, match="has no counterpart"):
        load_adapter(other, tmp_path)


@pytest.mark.parametrize("target", ["lm_head", "nonsense"])
def test_rejects_targets_that_can_not_be_adapted(target: str) -> None:
    with pytest.raises(LoraError, match="lora"):
        attach_adapter(make_model(TOKENIZER), LoraSettings(targets=(target,)), MARKER)


def test_names_the_base_by_hub_id_only(tmp_path: Path) -> None:
    assert base_name(LoraSettings(), "Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert base_name(LoraSettings(), str(tmp_path)) is None
    assert base_name(LoraSettings(base_name="a/b"), str(tmp_path)) == "a/b"


def test_the_reference_is_the_policy_at_the_start() -> None:
    plain = make_model(TOKENIZER)
    before = logits(plain)
    model = attach_adapter(plain, LoraSettings(rank=4), MARKER)
    reference = ReferencePolicy(model)
    randomize(model)
    now = logits(model)
    with reference.in_place():
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), now)
    assert not torch.equal(now, before)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_the_reference_of_a_model_that_is_sharded_later() -> None:
    plain: Any = make_model(TOKENIZER)
    before = logits(plain)
    model: Any = attach_adapter(plain, LoraSettings(rank=4), MARKER)
    reference = ReferencePolicy(model)
    for layer in plain.model.layers:
        fully_shard(layer)
    fully_shard(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    now = logits(model)
    for _ in range(2):
        with reference.in_place():
            torch.testing.assert_close(logits(model), before)
        assert torch.equal(logits(model), now)
    assert not torch.allclose(now, before)
