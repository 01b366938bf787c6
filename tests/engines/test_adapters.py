from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs
from transformers import AutoModelForCausalLM, PreTrainedModel

from service.deferral.policy import DeferralPolicy
from service.engines import adapters
from service.engines.adapters import fingerprint, is_adapter, merged
from service.engines.checkpoint import default_sampling, verify
from service.engines.model_lookup import base_of, locate
from service.engines.tokenizer import HFTokenizer
from service.engines.weight_sample import sample_weights
from tests.support.peft_adapters import ALL_LINEAR, make_adapter
from tests.support.tiny_qwen3 import make_model, make_qwen2, make_tokenizer, save
from tests.support.tokens import prompt

MARKER = make_tokenizer().convert_tokens_to_ids("<tool_call>")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path) -> Iterator[Path]:
    with patch.object(adapters, "cache_dir", lambda: tmp_path / "cache"):
        yield tmp_path / "cache"


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    result: torch.Tensor = model(input_ids=torch.tensor([[*prompt(40), MARKER, 5]])).logits[0].float()
    return result


def load(directory: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory)
    return model


@pytest.mark.parametrize("make", [make_model, make_qwen2])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, id="linear"),
        pytest.param({"use_rslora": True, "rank_pattern": {"q_proj": 2}}, id="rslora"),
        pytest.param({"use_dora": True}, id="dora"),
        pytest.param({"trainable_token_indices": [MARKER]}, id="marker-row"),
        pytest.param({"modules_to_save": ["lm_head"]}, id="head"),
        pytest.param({"modules_to_save": ["embed_tokens"]}, id="embedding"),
        pytest.param({"target_modules": [*ALL_LINEAR, "embed_tokens"]}, id="lora-on-embedding"),
    ],
)
def test_merged_checkpoint_matches_peft(
    tmp_path: Path, make: Callable[..., PreTrainedModel], tied: bool, config: dict[str, Any]
) -> None:
    model = make(make_tokenizer(), tie_word_embeddings=tied)
    base = save(model, tmp_path / "base")
    plain = logits(model)
    peft_model = make_adapter(model, tmp_path / "adapter", base=base, **config)
    expected = logits(peft_model)
    assert not torch.allclose(expected, plain, atol=0.1)

    found = logits(load(locate(str(tmp_path / "adapter"))))

    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("make", [make_model, make_qwen2])
def test_marker_row_stays_shared_by_embedding_and_head(
    tmp_path: Path, make: Callable[..., PreTrainedModel]
) -> None:
    model = make(make_tokenizer())
    base = save(model, tmp_path / "base")
    make_adapter(model, tmp_path / "adapter", base=base, trainable_token_indices=[MARKER])
    result = merged(tmp_path / "adapter", base)
    assert json.loads((result / "config.json").read_text())["tie_word_embeddings"]
    old, new = (load_file(folder / "model.safetensors") for folder in (base, result))
    assert old.keys() == new.keys()
    embedding = "model.embed_tokens.weight"
    changed = (old[embedding] != new[embedding]).any(dim=1).nonzero().flatten().tolist()
    assert changed == [MARKER]


def test_dtype_of_the_base_is_kept(tmp_path: Path) -> None:
    model = make_model(make_tokenizer())
    base = save(model.bfloat16(), tmp_path / "base")
    peft_model = make_adapter(model.float(), tmp_path / "adapter", base=base)
    result = merged(tmp_path / "adapter", base)
    stored = load_file(result / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert json.loads((result / "config.json").read_text())["dtype"] == "bfloat16"
    name = "model.layers.0.mlp.up_proj.weight"
    exact = peft_model.merge_and_unload().state_dict()[name].bfloat16()  # type: ignore[operator]
    assert (stored[name].float() - exact.float()).abs().max() <= 2**-7 * exact.float().abs().max()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """An adapter and its base."""
    model = make_model(make_tokenizer())
    base = save(model, tmp_path / "base")
    make_adapter(model, tmp_path / "adapter", base=base)
    return tmp_path / "adapter", base


def test_small_files_prefer_the_adapter(pair: tuple[Path, Path]) -> None:
    adapter, base = pair
    DeferralPolicy(max_turns=3).save(base)
    (base / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.6, "eos_token_id": 1}')
    first = merged(adapter, base)
    assert DeferralPolicy.load(first).max_turns == 3
    assert default_sampling(first).temperature == 0.6
    DeferralPolicy(max_turns=7).save(adapter)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}!"
    tokenizer.save_pretrained(adapter)
    second = merged(adapter, base)
    assert second != first
    assert DeferralPolicy.load(second).max_turns == 7
    rendered = HFTokenizer(str(second)).render_chat([{"role": "user", "content": "x"}])
    assert HFTokenizer(str(second)).decode(rendered) == "x!"


def test_merge_is_cached_until_a_file_changes(pair: tuple[Path, Path]) -> None:
    adapter, base = pair
    first = locate(str(adapter))
    verify(first)
    with patch.object(adapters, "_merge", side_effect=AssertionError("merged again")):
        assert locate(str(adapter)) == first
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, adapter / "adapter_model.safetensors")
    second = locate(str(adapter))
    assert second != first
    assert not torch.equal(logits(load(first)), logits(load(second)))
    os.utime(base / "model.safetensors", (1, 1))
    assert locate(str(adapter)) not in (first, second)


def test_broken_cache_entry_is_rebuilt(pair: tuple[Path, Path]) -> None:
    result = locate(str(pair[0]))
    expected = logits(load(result))
    (result / "model.safetensors").write_bytes(b"cut short")
    assert locate(str(pair[0])) == result
    torch.testing.assert_close(logits(load(result)), expected)


def test_failed_merge_leaves_nothing(pair: tuple[Path, Path], cache: Path) -> None:
    with (
        patch.object(PreTrainedModel, "save_pretrained", side_effect=OSError("no space left")),
        pytest.raises(OSError, match="no space"),
    ):
        locate(str(pair[0]))
    assert list(cache.iterdir()) == []


def test_old_entries_are_removed(pair: tuple[Path, Path], cache: Path) -> None:
    for number in range(adapters.KEPT + 1):
        entry = cache / f"old-{number}"
        entry.mkdir(parents=True)
        os.utime(entry, (1000 + number, 1000 + number))
    result = locate(str(pair[0]))
    kept = {f"old-{number}" for number in range(2, adapters.KEPT + 1)}
    assert {path.name for path in cache.iterdir()} == {result.name, *kept}


def test_base_option_overrides_the_adapter(pair: tuple[Path, Path], tmp_path: Path) -> None:
    adapter, base = pair
    expected = logits(load(locate(str(adapter))))
    base.rename(tmp_path / "moved")
    with pytest.raises(
        ValueError, match=r"base of the adapter .* was not found: .*Set --base DIR to use another one"
    ):
        locate(str(adapter))
    assert torch.equal(logits(load(locate(str(adapter), base=str(tmp_path / "moved")))), expected)
    with pytest.raises(ValueError, match="is also an adapter"):
        locate(str(adapter), base=str(adapter))


def test_adapter_without_a_base_is_rejected(pair: tuple[Path, Path]) -> None:
    config = json.loads((pair[0] / adapters.CONFIG).read_text())
    (pair[0] / adapters.CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="set --base"):
        locate(str(pair[0]))


def test_full_model_rejects_base(pair: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="base is only for adapters"):
        locate(str(pair[1]), base=str(pair[1]))


def test_without_weights_returns_the_base(pair: tuple[Path, Path], cache: Path) -> None:
    assert locate(str(pair[0]), weights=False) == pair[1]
    assert not cache.exists()


def test_is_adapter(pair: tuple[Path, Path]) -> None:
    assert is_adapter(pair[0])
    assert not is_adapter(pair[1])
    assert base_of(pair[0]) == pair[1]


def test_base_of_another_shape_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = save(make_model(make_tokenizer(), intermediate_size=64), tmp_path / "other")
    with pytest.raises(ValueError, match=r"does not fit the base .*size mismatch.*lora_"):
        locate(str(pair[0]), base=str(other))


def test_base_with_fewer_layers_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = save(make_model(make_tokenizer(), num_hidden_layers=1), tmp_path / "other")
    with pytest.raises(ValueError, match=r"has .*layers\.1.*which the base lacks"):
        locate(str(pair[0]), base=str(other))


def test_adapter_with_a_missing_tensor_is_named(pair: tuple[Path, Path]) -> None:
    path = pair[0] / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if "layers.1.mlp.up_proj.lora_B" in name))
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"lacks .*layers\.1\.mlp\.up_proj\.lora_B"):
        locate(str(pair[0]))


def test_base_of_another_fingerprint_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    adapter, base = pair
    (adapter / adapters.BASE).write_text(json.dumps({"sha256": fingerprint(base)}))
    locate(str(adapter))
    other = save(make_model(make_tokenizer(), seed=1), tmp_path / "other")
    with pytest.raises(ValueError, match="trained on another base"):
        locate(str(adapter), base=str(other))
    (adapter / adapters.BASE).write_text("{}")
    with pytest.raises(ValueError, match="is not of the form"):
        locate(str(adapter))


def test_a_similar_base_causes_a_warning(pair: tuple[Path, Path], tmp_path: Path) -> None:
    adapter, base = pair
    (adapter / adapters.BASE).write_text(
        json.dumps({"sha256": fingerprint(base), "sample": sample_weights(base)})
    )
    rounded = Path(shutil.copytree(base, tmp_path / "rounded"))
    weights = load_file(base / "model.safetensors")
    save_file({name: w.bfloat16().float() for name, w in weights.items()}, rounded / "model.safetensors")
    with capture_logs() as logs:
        locate(str(adapter), base=str(base))
        assert not any(entry["event"] == "adapter_base_differs" for entry in logs)
        locate(str(adapter), base=str(rounded))
    [warning] = [entry for entry in logs if entry["event"] == "adapter_base_differs"]
    assert warning["log_level"] == "warning"
    assert 0 < warning["relative_difference"] < 0.01
    other = save(make_model(make_tokenizer(), seed=1), tmp_path / "other")
    with pytest.raises(ValueError, match=r"trained on another base.* a relative difference of 1\d\d%"):
        locate(str(adapter), base=str(other))


@pytest.mark.parametrize("place", ["adapter", "base"])
def test_missing_weights_are_named(pair: tuple[Path, Path], place: str) -> None:
    adapter, base = pair
    file = {"adapter": adapter / "adapter_model.safetensors", "base": base / "model.safetensors"}[place]
    file.unlink()
    with pytest.raises(ValueError, match=f"{file.parent} has no .*safetensors"):
        locate(str(adapter))


def test_unreadable_adapter_config_is_named(pair: tuple[Path, Path]) -> None:
    (pair[0] / adapters.CONFIG).write_text("{")
    with pytest.raises(ValueError, match="can't be read"):
        locate(str(pair[0]))


def test_cache_that_cannot_be_written_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        patch.object(adapters, "cache_dir", lambda: tmp_path / "file" / "cache"),
        pytest.raises(ValueError, match=r"is not writable .*HF_HOME"),
    ):
        locate(str(pair[0]))


def test_merged_checkpoint_is_self_contained(pair: tuple[Path, Path]) -> None:
    result = locate(str(pair[0]))
    for path in pair:
        shutil.rmtree(path)
    load(result)
    HFTokenizer(str(result))
