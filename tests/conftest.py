"""Fixtures that several test packages share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a random tiny Qwen3 checkpoint with its tokenizer; see ``tests/support/tiny_qwen3.py``."""
    from tests.support.tiny_qwen3 import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("tiny-qwen3"))
