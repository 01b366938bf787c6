from __future__ import annotations

from pathlib import Path

import pytest

from service.engines.checkpoint import default_sampling, locate


def write(directory: Path, config: str) -> Path:
    (directory / "generation_config.json").write_text(config)
    return directory


def test_default_sampling_without_generation_config(tmp_path: Path) -> None:
    sampling = default_sampling(tmp_path)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)
    assert default_sampling(write(tmp_path, '{"eos_token_id": 1}')) == sampling


def test_default_sampling_from_generation_config(tmp_path: Path) -> None:
    config = '{"do_sample": true, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": null}'
    sampling = default_sampling(write(tmp_path, config))
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.6, 0.95, 20, 0.0)


def test_do_sample_false_is_greedy(tmp_path: Path) -> None:
    assert default_sampling(write(tmp_path, '{"do_sample": false}')).temperature == 0.0


def test_locates_a_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert locate(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("model", ["/nowhere", "no checkpoint here", "../x/y/z"])
def test_rejects_path_that_is_not_a_checkpoint_or_hub_id(model: str) -> None:
    with pytest.raises(ValueError, match="is not a checkpoint"):
        locate(model)


def test_rejects_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json"):
        locate(str(tmp_path))
