from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from service.engines.weight_sample import MAX_TENSORS, VALUES, relative_difference, sample_weights
from tests.support.tiny_qwen3 import make_checkpoint, make_model, make_tokenizer, save


def change(source: Path, target: Path, factor: float) -> Path:
    """Write a copy of ``source`` whose matrices differ from it by the relative norm ``factor``."""
    target.mkdir()
    weights = load_file(source / "model.safetensors")
    torch.manual_seed(0)
    for name, tensor in weights.items():
        if tensor.dim() == 2:
            weights[name] = tensor * (1 + factor * torch.sign(torch.randn_like(tensor)))
    save_file(weights, target / "model.safetensors")
    return target


def test_sample_is_small_and_matches_its_checkpoint(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", num_hidden_layers=8)
    sample = sample_weights(checkpoint)
    assert len(sample) == MAX_TENSORS
    assert {len(values) for values in sample.values()} == {VALUES}
    assert relative_difference(sample, checkpoint) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("factor", [0.01, 0.1])
def test_difference_of_a_changed_copy(tmp_path: Path, factor: float) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    other = change(checkpoint, tmp_path / "other", factor)
    assert relative_difference(sample_weights(checkpoint), other) == pytest.approx(factor, rel=0.01)


def test_another_model_is_far_away(tmp_path: Path) -> None:
    one, other = (make_checkpoint(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    difference = relative_difference(sample_weights(one), other)
    assert difference is not None
    assert difference > 1


def test_a_missing_tensor_has_no_difference(tmp_path: Path) -> None:
    sample = sample_weights(make_checkpoint(tmp_path / "model"))
    shallow = save(make_model(make_tokenizer(), num_hidden_layers=1), tmp_path / "shallow")
    assert relative_difference(sample, shallow) is None
    assert relative_difference({}, shallow) is None


def test_a_directory_without_weights_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no weights"):
        sample_weights(tmp_path)
