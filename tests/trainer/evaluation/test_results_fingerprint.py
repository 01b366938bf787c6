from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from trainer.evaluation.results import checkpoint_fingerprint


def test_depends_on_the_content_alone(tmp_path: Path, tiny_checkpoint: Path) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    (copy / "README.md").write_text("notes")
    (copy / "optimizer").mkdir()
    for path in copy.iterdir():
        os.utime(path, (0, 0))
    assert checkpoint_fingerprint(copy) == checkpoint_fingerprint(tiny_checkpoint)
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in tiny_checkpoint.iterdir():
        (linked / path.name).symlink_to(path)  # as the hub's cache has it
    assert checkpoint_fingerprint(linked) == checkpoint_fingerprint(tiny_checkpoint)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_single_byte_matters(tmp_path: Path, tiny_checkpoint: Path, name: str) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    assert checkpoint_fingerprint(copy) != checkpoint_fingerprint(tiny_checkpoint)


def test_a_deferral_policy_matters(tmp_path: Path, tiny_checkpoint: Path) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    (copy / "deferral.json").write_text('{"schema_version": 3, "max_turns": 2}')
    assert checkpoint_fingerprint(copy) != checkpoint_fingerprint(tiny_checkpoint)
