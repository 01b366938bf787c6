"""Checkpoints that are whole or not there."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from service.checkpoint import MANIFEST, CheckpointError, verify

_NAME: Final = re.compile(r"checkpoint-(\d+)")
_STAGING: Final = ".staging-"


def staging_path(final: Path) -> Path:
    """Where ``final`` is written before it is whole."""
    return final.parent / f"{_STAGING}{final.name}"


@contextmanager
def staged(final: Path) -> Iterator[Path]:
    """A directory to write a checkpoint into, which becomes ``final`` when the block ends without an error.

    Everything is on the disk before the rename, and the rename is atomic: a process killed at any moment
    leaves either no ``final`` or a whole one.

    Raises:
        CheckpointError: ``final`` exists.
    """
    if final.exists():
        raise CheckpointError(f"{final} exists: checkpoints are never written over")
    staging = staging_path(final)
    _remove(staging)
    staging.mkdir(parents=True)
    try:
        yield staging
        files = sorted(path for path in staging.rglob("*") if path.is_file())
        sizes = {str(path.relative_to(staging)): path.stat().st_size for path in files}
        (staging / MANIFEST).write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")
        for path in [*staging.rglob("*"), staging]:
            _sync(path)
        staging.rename(final)
        _sync(final.parent)
    except BaseException:
        _remove(staging)
        raise


def latest(directory: Path) -> Path | None:
    """The whole checkpoint of the highest step in ``directory``; None where there is none.

    Raises:
        CheckpointError: the one of the highest step is damaged. Falling back to an older one is for a human.
    """
    checkpoints = _checkpoints(directory)
    if not checkpoints:
        return None
    verify(checkpoints[-1])
    return checkpoints[-1]


def prune(directory: Path, keep: int) -> None:
    """Remove all but the ``keep`` newest checkpoints, and what a killed process left unfinished."""
    for checkpoint in _checkpoints(directory)[:-keep]:
        # Renamed first, so that one half removed is never taken for whole.
        checkpoint.rename(staging_path(checkpoint))
    for leftover in directory.glob(f"{_STAGING}*"):
        _remove(leftover)


def write_atomically(path: Path, data: bytes) -> None:
    """Write one file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def _checkpoints(directory: Path) -> list[Path]:
    named = ((_NAME.fullmatch(path.name), path) for path in directory.glob("checkpoint-*"))
    return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
