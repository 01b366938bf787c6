"""Model lookup: from a path, a hub id or an adapter to the directory of a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from service.engines import adapters
from service.engines.checkpoint import is_gguf, quickstart

_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")


def locate(model: str, *, weights: bool = True, base: str | None = None, revision: str | None = None) -> Path:
    """Return the directory of ``model``: a path, or a Hugging Face id, which is downloaded unless cached.

    A PEFT adapter is merged into its base model first: see ``service.engines.adapters``.

    Args:
        model: path or hub id of a full model or of an adapter.
        weights: if false, only the small files are downloaded, and the base of an adapter is returned.
        base: path or hub id of an adapter's base model. Default: the one that the adapter names.
        revision: branch, tag or commit of a hub id.

    Raises:
        ValueError: the checkpoint does not exist or can't be used; the message has a hint.
    """
    path = Path(model).expanduser()
    if is_gguf(path):
        raise ValueError(
            f"model {model!r} is a GGUF file, which can only be served: give the checkpoint here"
        )
    if path == Path("checkpoints/quickstart") and not path.exists():
        # Recipes use this name, also without a checkout.
        path = quickstart()
    if not (path / "config.json").is_file() and not adapters.is_adapter(path):
        if path.exists() or not _HUB_ID.fullmatch(model):
            raise ValueError(
                f"model {model!r} is not a checkpoint: give a directory with config.json or "
                "adapter_config.json, or a hub id"
            )
        from service.engines import hub  # needs huggingface_hub, which local checkpoints do not

        path = hub.download(model, weights=weights, revision=revision)
        if not (path / "config.json").is_file() and not adapters.is_adapter(path):
            raise ValueError(
                f"model {model!r} is not a checkpoint: the hub repository has neither config.json nor "
                "adapter_config.json (to serve a GGUF file, download it and set model to its path)"
            )
    if not adapters.is_adapter(path):
        if base is not None:
            raise ValueError(f"base is only for adapters, and {model!r} is a full model: remove base")
        return path
    found = base_of(path, base, weights=weights)
    return adapters.merged(path, found) if weights else found


def locate_gguf(model: str) -> Path:
    """Return the path of a GGUF file.

    Raises:
        ValueError: the file does not exist.
    """
    path = Path(model).expanduser()
    if not path.is_file():
        raise ValueError(f"model {model!r} does not exist: give the path of a GGUF file on this machine")
    return path


def base_of(adapter: Path, base: str | None = None, *, weights: bool = True) -> Path:
    """Return the directory of the base model: ``base``, else the adapter's ``base_model_name_or_path``.

    Raises:
        ValueError: the adapter does not name a base, or the base is not available.
    """
    config = adapters.read_config(adapter)
    name = base or config.get("base_model_name_or_path")
    if not name:
        raise ValueError(f"{adapter / adapters.CONFIG} has no base_model_name_or_path: set --base")
    if adapters.is_adapter(Path(name).expanduser()):
        raise ValueError(f"the base {name!r} of the adapter {adapter} is also an adapter: set --base DIR")
    try:
        return locate(str(name), weights=weights, revision=None if base else config.get("revision"))
    except ValueError as error:
        raise ValueError(
            f"the base of the adapter {adapter} was not found: {error}. Set --base DIR to use another one"
        ) from error
