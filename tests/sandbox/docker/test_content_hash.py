"""The hash that decides whether the sandbox image is built again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from service.sandbox.docker.image import content_hash


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "image"
    (folder / "worker").mkdir(parents=True)
    (folder / "Dockerfile").write_text("FROM x\n")
    (folder / "worker" / "a file.py").write_text("pass\n")
    return folder


def test_copies_have_the_same_hash(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert content_hash(copy) == content_hash(folder)
    assert len(content_hash(folder)) == 64


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda f: (f / "Dockerfile").write_text("FROM y\n"), id="content"),
        pytest.param(lambda f: (f / "Dockerfile").rename(f / "Dockerfile2"), id="name"),
        pytest.param(lambda f: (f / "Dockerfile").chmod(0o755), id="executable"),
        pytest.param(lambda f: (f / "worker" / "new.py").touch(), id="new file"),
    ],
)
def test_changes_when_the_files_change(folder: Path, change: Callable[[Path], object]) -> None:
    before = content_hash(folder)
    change(folder)
    assert content_hash(folder) != before


@pytest.mark.parametrize("name", ["certs/machine.crt", "worker/__pycache__/a.pyc"])
def test_ignores_certificates_and_caches(folder: Path, name: str) -> None:
    before = content_hash(folder)
    (folder / name).parent.mkdir()
    (folder / name).write_text("x")
    assert content_hash(folder) == before
