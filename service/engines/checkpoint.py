"""Checkpoints on disk: the quickstart checkpoint, default sampling parameters, and completeness checks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from service.engines.base import Sampling
from service.engines.gguf_metadata import gguf_sampling

MANIFEST: Final = "manifest.json"
"""File with the sizes of all other files; written last into a checkpoint of a training run."""


class CheckpointError(Exception):
    """A checkpoint is unusable. The message names it, with a hint."""


def quickstart() -> Path:
    """The directory of the quickstart checkpoint: in the installed package, or beside it in the
    repository."""
    package = Path(__file__).resolve().parents[1]
    places = [package / "checkpoints" / "quickstart", package.parent / "checkpoints" / "quickstart"]
    return next((place for place in places if place.is_dir()), places[-1])


DEMO_NOTICE: Final = (
    "This is the demo model: 2 million parameters that do arithmetic by running Python and nothing else. "
    "For a real model: ih-grpo serve --model Qwen/Qwen3-4B"
)
"""Notice about the quickstart checkpoint, shown wherever it could be mistaken for a general model."""
DEMO_WITHOUT_DEFERRAL: Final = (
    "The demo model only knows to answer by code that runs. With deferral off nothing runs, so this reply is "
    "not an answer."
)


def is_demo(model: str) -> bool:
    """Whether ``model`` is the quickstart checkpoint that comes with this package."""
    return Path(model).expanduser().resolve() == quickstart().resolve()


GGUF_SUFFIX: Final = ".gguf"


def is_gguf(model: str | Path) -> bool:
    """Whether ``model`` names a GGUF file."""
    return str(model).lower().endswith(GGUF_SUFFIX)


def default_sampling(model_dir: Path) -> Sampling:
    """Read default sampling parameters from ``generation_config.json``, or from the metadata of a GGUF file;
    for missing fields, temperature 1.0 and no filters.

    ``do_sample: false`` means greedy.
    """
    if is_gguf(model_dir):
        return gguf_sampling(model_dir)
    path = model_dir / "generation_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    names = ("temperature", "top_p", "top_k", "min_p")
    known = {name: config[name] for name in names if config.get(name) is not None}
    sampling = replace(Sampling(), **known)
    return replace(sampling, temperature=0.0) if config.get("do_sample") is False else sampling


def verify(checkpoint: Path) -> None:
    """Check that every file of the manifest exists in its full size, to reject interrupted copies.

    Raises:
        CheckpointError: the manifest or a file is missing, or a size differs.
    """
    try:
        sizes: dict[str, int] = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CheckpointError(
            f"{checkpoint} has no readable {MANIFEST}: it is incomplete, remove it"
        ) from None
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != size:
            raise CheckpointError(f"{checkpoint}: {name} is missing or incomplete: remove the checkpoint")
