"""The hash that decides whether the sandbox image is built again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "image"
    (folder / "worker").mkdir(parents=True)
    (folder / "Dockerfile").write_text("FROM x\n")
    (folder / "worker" / "a file.py").write_text("pass\n")
    return folder


def test_copies_have_one_hash(checkout: Any, folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    hashes = {checkout.run("scripts/content-hash", str(each)).stdout for each in (folder, copy)}
    assert len(hashes) == 1
    assert len(hashes.pop().strip()) == 64


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda f: (f / "Dockerfile").write_text("FROM y\n"), id="content"),
        pytest.param(lambda f: (f / "Dockerfile").rename(f / "Dockerfile2"), id="name"),
        pytest.param(lambda f: (f / "Dockerfile").chmod(0o755), id="executable"),
        pytest.param(lambda f: (f / "worker" / "new.py").touch(), id="new file"),
    ],
)
def test_a_change_changes_it(checkout: Any, folder: Path, change: Callable[[Path], object]) -> None:
    before = checkout.run("scripts/content-hash", str(folder)).stdout
    change(folder)
    assert checkout.run("scripts/content-hash", str(folder)).stdout != before


@pytest.mark.parametrize("name", ["certs/machine.crt", "worker/__pycache__/a.pyc"])
def test_what_only_this_machine_adds_does_not(checkout: Any, folder: Path, name: str) -> None:
    before = checkout.run("scripts/content-hash", str(folder)).stdout
    (folder / name).parent.mkdir()
    (folder / name).write_text("x")
    assert checkout.run("scripts/content-hash", str(folder)).stdout == before
