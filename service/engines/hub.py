"""Downloads from the Hugging Face hub, with progress on a terminal and in the log of a container."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any, Final

import structlog
from tqdm.auto import tqdm

log = structlog.get_logger(__name__)

LOG_EVERY_S: Final = 10.0
"""Seconds between two log lines about one download, without a terminal for a progress bar."""
_FILES: Final = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
_MIB: Final = 2**20


def download(model: str, *, weights: bool = True, revision: str | None = None) -> Path:
    """Return the local directory of a hub model, downloading the files that are not cached.

    Progress is a bar if stderr is a terminal, else a log line every `LOG_EVERY_S` seconds. Nothing is shown
    if all files are cached.

    Args:
        model: a hub id, such as ``Qwen/Qwen3-4B``.
        weights: if false, only the small files are downloaded.
        revision: branch, tag or commit. Default: the default branch.

    Raises:
        ValueError: the download failed; the message has the cause and a hint.
    """
    from huggingface_hub import snapshot_download

    options: dict[str, Any] = {
        "allow_patterns": list(_FILES),
        "ignore_patterns": None if weights else ["*.safetensors"],
        "revision": revision,
    }
    try:
        size = _missing_bytes(model, options)
        if size:
            _announce(model, size)
        shown: dict[str, Any] = {} if size and sys.stderr.isatty() else {"tqdm_class": _bar(size, model)}
        folder = Path(snapshot_download(model, **options, **shown))
    except Exception as error:  # the hub client's errors have no common base class
        raise ValueError(f"model {model!r} can't be downloaded: {_explain(model, error)}") from error
    if size:
        log.info("model_downloaded", model=model, mib=round(size / _MIB))
    return folder


def _missing_bytes(model: str, options: dict[str, Any]) -> int:
    """Bytes to download; 0 if the hub can't be reached, in which case only the cache is used."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError

    try:
        files = snapshot_download(model, **options, dry_run=True, tqdm_class=_Silent)
    except DryRunError:
        return 0
    return sum(file.file_size for file in files if file.will_download)


def _announce(model: str, size: int) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    log.info("model_download", model=model, mib=round(size / _MIB), directory=HF_HUB_CACHE)
    place = next(path for path in (Path(HF_HUB_CACHE), *Path(HF_HUB_CACHE).parents) if path.exists())
    if (free := shutil.disk_usage(place).free) < size:
        raise OSError(
            f"it needs {size / _MIB:,.0f} MiB and {place} has {free / _MIB:,.0f} MiB free: make room "
            "or set HF_HOME to another disk"
        )


class _Silent(tqdm):  # type: ignore[misc]
    """A progress bar that shows nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})


def _bar(size: int, model: str) -> type[_Silent]:
    """Return a bar class that logs how many of ``size`` bytes have arrived; a silent one if ``size`` is 0."""
    if not size:
        return _Silent
    last, most = time.monotonic(), 0.0

    class Logged(_Silent):
        # The client has several bars; the most advanced one counts all bytes.
        def update(self, n: float | None = 1) -> None:
            nonlocal last, most
            self.n += n or 0
            most = max(most, self.n)
            if self.n == most and time.monotonic() - last >= LOG_EVERY_S:
                last = time.monotonic()
                log.info(
                    "model_download_progress",
                    model=model,
                    mib=round(most / _MIB),
                    of_mib=round(size / _MIB),
                    percent=min(100, round(100 * most / size)),
                )

    return Logged


def _explain(model: str, error: Exception) -> str:
    """The cause in one line, with a hint."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    endpoint = constants.ENDPOINT
    if isinstance(error, GatedRepoError):
        return (
            f"it requires accepting a licence: accept it at {endpoint}/{model} and set HF_TOKEN to your token"
        )
    if isinstance(error, RevisionNotFoundError):
        return "this revision does not exist"
    if isinstance(error, RepositoryNotFoundError):
        return f"the model does not exist at {endpoint} or is private: check the id, or set HF_TOKEN"
    if isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return "it is not in the cache and HF_HUB_OFFLINE is set: unset it, or set model to a directory"
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"it is not in the cache and {endpoint} can't be reached: check the network and HF_ENDPOINT, or "
            "copy the checkpoint here and set model to its directory"
        )
    return next((line for line in str(error).splitlines() if line.strip()), repr(error))
