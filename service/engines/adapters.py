"""PEFT adapters as checkpoints: merge an adapter into its base model once, and cache the result.

Every engine then serves an ordinary checkpoint. vLLM does not support adapters with trained token embeddings.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from service.engines.checkpoint import MANIFEST, CheckpointError, verify
from service.engines.weight_sample import WeightSample, relative_difference

log = structlog.get_logger(__name__)

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
BASE: Final = "base.json"
"""Optional file in an adapter's directory about its base model: ``sha256`` is its `fingerprint`, ``sample``
(in exported adapters) some of its weights, see `service.engines.weight_sample`."""
SIMILAR: Final = 0.2
"""Relative difference of weights up to which another base is used, with a warning. Weights rounded to 4 bits
differ by about 0.13; those of two models trained from different random values differ by more than 1."""
KEPT: Final = 4
"""Minimum number of merged checkpoints to keep. Older ones are removed after a day without use."""
_FORMAT: Final = 1
_TOKENIZER: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
_OF_ADAPTER: Final = (
    *_TOKENIZER,
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "deferral.json",
    "execute_head.json",
)
"""Files of an adapter's directory that replace the base's."""


def is_adapter(path: Path) -> bool:
    """Whether ``path`` is the directory of a PEFT adapter, not of a full model."""
    return (path / CONFIG).is_file() and not (path / "config.json").is_file()


def read_config(adapter: Path) -> dict[str, Any]:
    """Read the adapter's configuration.

    Raises:
        ValueError: the file is missing or is not JSON.
    """
    try:
        config: dict[str, Any] = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{adapter / CONFIG} can't be read: {error}") from error
    return config


def merged(adapter: Path, base: Path) -> Path:
    """Return the directory of the merged checkpoint, merging unless it is cached.

    The adapter's products are computed in float32 and added to the base's weights in the base's dtype, so
    each weight is rounded once. Tokenizer, chat template, generation config and ``deferral.json`` come from
    the adapter if it has them, else from the base. The cache is in the Hugging Face home (``HF_HOME``), with
    one directory per pair of adapter and base; a change to either creates a new one.

    Raises:
        ValueError: the adapter or the base can't be read, or the adapter does not fit the base.
        ModuleNotFoundError: peft is not installed.
    """
    check_base(adapter, base)
    cache = cache_dir()
    target = cache / f"{adapter.resolve().name}-{_key(adapter, base)}"
    try:
        verify(target)
    except CheckpointError:
        log.info("adapter_merge", adapter=str(adapter), base=str(base), directory=str(target))
        try:
            cache.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=".", dir=cache))
        except OSError as error:
            raise ValueError(
                f"the adapter {adapter} can't be merged: {cache} is not writable ({error.strerror}). "
                "Set HF_HOME to a directory with room for the merged model"
            ) from error
        try:
            _merge(adapter, base, staging)
            _publish(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    os.utime(target)
    _prune(cache, keep=target)
    return target


def merge_into(adapter: Path, base: Path, target: Path) -> None:
    """Write the merged checkpoint to ``target``, completely or not at all.

    Raises:
        ValueError: ``target`` exists, the adapter or the base can't be read, or the adapter does not fit.
        ModuleNotFoundError: peft is not installed.
    """
    if target.exists():
        raise ValueError(f"{target} already exists: choose another directory")
    check_base(adapter, base)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _merge(adapter, base, staging)
        staging.chmod(0o755)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def cache_dir() -> Path:
    """The directory of the merged checkpoints."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "ih-grpo" / "merged"


def fingerprint(checkpoint: Path) -> str:
    """SHA-256 of the weights of a checkpoint, for `BASE`. Reads all weights: about a second per gigabyte.

    Raises:
        ValueError: the checkpoint has no safetensors files.
    """
    digest = hashlib.sha256()
    for path in _weight_files(checkpoint):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _weight_files(checkpoint: Path) -> list[Path]:
    if not (paths := sorted(checkpoint.glob("*.safetensors"))):
        raise ValueError(f"{checkpoint} has no *.safetensors: copy its weights as well")
    return paths


@dataclass(frozen=True, slots=True)
class BaseIdentity:
    """Content of `BASE`: what an adapter knows about its base model."""

    sha256: str
    """`fingerprint` of the base's weights."""
    sample: WeightSample | None = None
    """Some of these weights, in exported adapters; see `service.engines.weight_sample`."""

    def save(self, adapter: Path) -> None:
        """Write the file into an adapter's directory."""
        values: dict[str, object] = {"sha256": self.sha256}
        if self.sample is not None:
            values["sample"] = self.sample
        (adapter / BASE).write_text(json.dumps(values) + "\n", encoding="utf-8")


def read_base(adapter: Path) -> BaseIdentity | None:
    """Return the content of `BASE`, or None if the adapter does not have that file.

    Raises:
        ValueError: the file is not readable or has another form.
    """
    path = adapter / BASE
    if not path.is_file():
        return None
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return BaseIdentity(str(known["sha256"]), dict(known["sample"]) if "sample" in known else None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} is not of the form {{"sha256": ...}}: {error!r}') from error


def check_base(adapter: Path, base: Path) -> None:
    """Check that an adapter was trained on ``base``, by `BASE` if the adapter has that file.

    Logs a warning if ``base`` has slightly different weights, for example because it was quantised and
    converted back.

    Raises:
        ValueError: `BASE` is invalid, or the adapter was trained on another model.
    """
    known = read_base(adapter)
    if known is None or known.sha256 == (found := fingerprint(base)):
        return
    difference = relative_difference(known.sample or {}, base)
    if difference is not None and difference <= SIMILAR:
        log.warning(
            "adapter_base_differs",
            adapter=str(adapter),
            base=str(base),
            relative_difference=round(difference, 4),
            hint="the adapter was trained on a slightly different copy of this model; results may differ",
        )
        return
    by = "" if difference is None else f", a relative difference of {difference:.0%}"
    raise ValueError(
        f"the adapter {adapter} was trained on another base, with the fingerprint {known.sha256[:12]}; the "
        f"weights in {base} have {found[:12]}{by}. Set --base to the base that it was trained on"
    )


def _key(adapter: Path, base: Path) -> str:
    """A cache key that changes with the files of the adapter and of the base."""
    digest = hashlib.sha256(f"{_FORMAT}".encode())
    for name in (CONFIG, WEIGHTS, *_OF_ADAPTER):
        path = adapter / name
        if path.is_file():
            with path.open("rb") as file:
                digest.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
    for path in sorted(base.iterdir()):
        if path.is_file():  # a hub snapshot links to files named by their content
            stat = path.stat()
            digest.update(f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _merge(adapter: Path, base: Path, target: Path) -> None:
    """Write the merged checkpoint to ``target``, an empty directory."""
    from peft import PeftModel
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    _weight_files(base)
    if not (adapter / WEIGHTS).is_file():
        raise ValueError(f"the adapter {adapter} has no {WEIGHTS}: save it with safetensors")
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        dtype, was_tied = model.dtype, model.config.tie_word_embeddings
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # peft reports the config of a newer version this way.
            warnings.filterwarnings("default", message="Unexpected keyword arguments")
            peft_model = PeftModel.from_pretrained(model, str(adapter), torch_device="cpu")
            _check_keys(peft_model, adapter)
            _separate(model)
            whole: Any = peft_model.merge_and_unload(safe_merge=True)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"the adapter {adapter} does not fit the base {base}: {_short(error)}") from error
    if was_tied:
        _tie_if_equal(whole)
    for path in _small_files(base):
        shutil.copyfile(path, target / path.name)
    if any((adapter / name).is_file() for name in _TOKENIZER):
        for name in _TOKENIZER:  # never mix two tokenizers
            (target / name).unlink(missing_ok=True)
    if any((adapter / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        for name in ("chat_template.jinja", "chat_template.json"):
            (target / name).unlink(missing_ok=True)
    generation = (target / "generation_config.json").read_bytes() if _has_generation(target) else None
    whole.to(dtype).save_pretrained(target)
    if generation is not None:  # keep the base's file: transformers would drop fields
        (target / "generation_config.json").write_bytes(generation)
    for name in _OF_ADAPTER:
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, target / name)
    sizes = {path.name: path.stat().st_size for path in target.iterdir()}
    (target / MANIFEST).write_text(json.dumps(sizes), encoding="utf-8")


def _has_generation(directory: Path) -> bool:
    return (directory / "generation_config.json").is_file()


def _small_files(base: Path) -> Iterator[Path]:
    """The base's files except its weights and their index."""
    for path in base.iterdir():
        is_text = path.suffix in (".json", ".jinja", ".txt", ".model")
        if path.is_file() and is_text and path.name != MANIFEST and ".safetensors" not in path.name:
            yield path


def _check_keys(peft_model: Any, adapter: Path) -> None:
    """Check that the file has exactly the tensors that the model expects."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    expected = set(get_peft_model_state_dict(peft_model, save_embedding_layers=False))
    with safe_open(adapter / WEIGHTS, "pt") as file:
        stored = set(file.keys())
    if missing := sorted(expected - stored):
        raise ValueError(f"{WEIGHTS} lacks {missing[0]} ({len(missing)} missing)")
    if unknown := sorted(stored - expected - set(peft_model.state_dict())):
        raise ValueError(f"{WEIGHTS} has {unknown[0]}, which the base lacks ({len(unknown)} unknown)")


def _separate(model: Any) -> None:
    """Untie the head from the embedding, so that merging into one does not change the other."""
    from torch.nn import Linear, Parameter

    shared = {weight.data_ptr() for weight in model.get_input_embeddings().parameters()}
    for module in model.get_output_embeddings().modules():
        if isinstance(module, Linear) and module.weight.data_ptr() in shared:
            module.weight = Parameter(module.weight.detach().clone(), requires_grad=False)


def _tie_if_equal(model: Any) -> None:
    """Tie the head to the embedding again if the adapter left them equal."""
    import torch

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    model.config.tie_word_embeddings = torch.equal(embedding.weight, head.weight)
    if model.config.tie_word_embeddings:
        head.weight = embedding.weight


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    mismatch = [line for line in lines if "size mismatch" in line]
    return (mismatch or lines or [repr(error)])[0]


def _publish(staging: Path, target: Path) -> None:
    """Rename a finished directory to its final name. Another process may have published the same content
    first."""
    if target.exists():
        try:
            verify(target)
        except CheckpointError:
            shutil.rmtree(target, ignore_errors=True)
        else:
            return
    try:
        staging.rename(target)
    except OSError:
        verify(target)


def _prune(cache: Path, *, keep: Path) -> None:
    entries = [path for path in cache.iterdir() if path.is_dir() and path != keep]
    entries.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    yesterday = time.time() - 24 * 3600
    for path in entries[KEPT - 1 :]:
        if path.stat().st_mtime < yesterday:
            shutil.rmtree(path, ignore_errors=True)
