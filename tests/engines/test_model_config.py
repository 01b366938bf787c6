from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.engines.model_config import ModelFiles


def test_limits_and_end_tokens(tiny_checkpoint: Path) -> None:
    files = ModelFiles(str(tiny_checkpoint))
    names = {files.tokenizer.decode([token_id]) for token_id in files.eos_token_ids}
    assert names == {"<|im_end|>", "<|endoftext|>"}
    assert (files.context_length, files.vocab_size) == (512, 365)
    assert ModelFiles(str(tiny_checkpoint), 100).context_length == 100
    assert ModelFiles(str(tiny_checkpoint), 9999).context_length == 512


@pytest.mark.parametrize("content", [None, {}, {"eos_token_id": None}])
def test_end_token_comes_from_the_tokenizer_without_generation_config(
    tiny_checkpoint: Path, tmp_path: Path, content: dict[str, object] | None
) -> None:
    for path in tiny_checkpoint.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "generation_config.json").unlink()
    if content is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(content))
    files = ModelFiles(str(tmp_path))
    assert [files.tokenizer.decode([token_id]) for token_id in files.eos_token_ids] == ["<|im_end|>"]
