from __future__ import annotations

from pathlib import Path

from service.engines.checkpoint import default_sampling


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
