from __future__ import annotations

from pathlib import Path

import pytest

from service.engines.model_lookup import locate, locate_gguf


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


def test_gguf_file_can_only_be_served(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with pytest.raises(ValueError, match="does not exist: give the path of a GGUF file"):
        locate_gguf(str(path))
    path.touch()
    assert locate_gguf(str(path)) == path
    with pytest.raises(ValueError, match="GGUF file, which can only be served"):
        locate(str(path))
