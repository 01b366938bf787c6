from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.toy_task import make_toy_checkpoint


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny model that solves half of the toy task; see ``tests/support/toy_task.py``."""
    return make_toy_checkpoint(tmp_path_factory.mktemp("toy"))
