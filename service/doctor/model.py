"""Checks of the checkpoint, without downloading it. Only weights of an adapter's base are read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from service.deferral.policy import ASSISTANT_POLICY, FILE_NAME, DeferralPolicy, policy_path
from service.doctor import CheckResult
from service.engines import adapters
from service.engines.base import EngineError
from service.engines.checkpoint import is_gguf
from service.engines.gguf_metadata import read_metadata


def find(model: str, base: str | None = None) -> tuple[Path | None, CheckResult]:
    """Return the checkpoint's directory, None if unavailable, and whether it can be served.

    For an adapter, the directory is that of its base model. For a GGUF file, it is the file.

    Args:
        model: directory or hub id of a full model or an adapter.
        base: directory or hub id of an adapter's base model. Default: the one that the adapter names.
    """
    path = Path(model).expanduser()
    if is_gguf(path):
        return _check_gguf(path)
    if path.exists():
        return _check(path, base)
    from huggingface_hub import try_to_load_from_cache

    try:
        places = [try_to_load_from_cache(model, name) for name in ("config.json", adapters.CONFIG)]
    except ValueError:
        hint = "set model to a directory with config.json, or to a hub id such as Qwen/Qwen3-1.7B"
        return None, CheckResult("model", "fail", f"{model!r} is neither a directory nor a hub id", hint)
    cached = next((place for place in places if isinstance(place, str)), None)
    if cached is None:
        return None, CheckResult(
            "model", "warn", f"{model} is not downloaded yet", "it will be downloaded at the first start"
        )
    return _check(Path(cached).parent, base)


def _check(folder: Path, base: str | None) -> tuple[Path | None, CheckResult]:
    if adapters.is_adapter(folder):
        return _check_adapter(folder, base)
    if base is not None:
        return folder, CheckResult(
            "model", "fail", f"{folder} is a full model, not an adapter", "remove base"
        )
    if not (folder / "config.json").is_file():
        return None, CheckResult(
            "model", "fail", f"{folder} has no config.json", "set model to the directory of a checkpoint"
        )
    if isinstance(policy := _policy(folder), CheckResult):
        return folder, policy
    if weights(folder) == 0:
        return folder, CheckResult(
            "model", "fail", f"{folder} has no weights", "copy its *.safetensors as well"
        )
    return folder, _served(folder, has_marker=_has_token(folder, policy.marker), marker=policy.marker)


def _check_gguf(path: Path) -> tuple[Path | None, CheckResult]:
    try:
        metadata = read_metadata(path)
    except EngineError as error:
        return None, CheckResult("model", "fail", str(error), "set model to a complete GGUF file")
    if isinstance(policy := _policy(path), CheckResult):
        return path, policy
    has_marker = policy.marker in metadata.get("tokenizer.ggml.tokens", [])
    return path, _served(path, has_marker=has_marker, marker=policy.marker)


def _policy(model: Path) -> DeferralPolicy | CheckResult:
    """Return the model's policy, or the failed check."""
    try:
        return DeferralPolicy.load(model, default=ASSISTANT_POLICY)
    except (ValidationError, ValueError) as error:
        reason = str(error).splitlines()[0]
        return CheckResult("model", "fail", f"{policy_path(model)}: {reason}", "fix or remove the file")


def _served(model: Path, *, has_marker: bool, marker: str) -> CheckResult:
    if not has_marker:
        return CheckResult(
            "model",
            "fail",
            f"{model}: the tokenizer has no token {marker}",
            f"serve a Qwen3 checkpoint, or one trained with a marker that {FILE_NAME} names",
        )
    is_trained = policy_path(model).is_file()
    training = "trained to defer" if is_trained else "not trained to defer: ordinary prompting"
    return CheckResult("model", "ok", f"{model.name}, {weights(model) / 2**20:,.0f} MiB, {training}")


def _check_adapter(folder: Path, base: str | None) -> tuple[Path | None, CheckResult]:
    """Check an adapter, and its base model if that is on this machine."""
    try:
        config = adapters.read_config(folder)
    except ValueError as error:
        return None, CheckResult("model", "fail", str(error), "copy the adapter again")
    if not (folder / adapters.WEIGHTS).is_file():
        return None, CheckResult("model", "fail", f"{folder} has no {adapters.WEIGHTS}", "copy it as well")
    name = base or config.get("base_model_name_or_path")
    if not name or adapters.is_adapter(Path(name).expanduser()):
        reason = f"{folder} names no base model" if not name else f"the base {name} is also an adapter"
        return None, CheckResult("model", "fail", reason, "set base to the model that it was trained on")
    base_folder, found = find(str(name))
    if base_folder is None or found.verdict != "ok":
        return base_folder, replace(found, found=f"base of {folder.name}: {found.found}")
    try:
        adapters.check_base(folder, base_folder)
    except ValueError as error:
        return base_folder, CheckResult(
            "model", "fail", str(error), "set base to the model that it was trained on"
        )
    return base_folder, CheckResult(
        "model", "ok", f"{folder.name} is an adapter of {name}, to be merged at the first start"
    )


def weights(model: Path) -> int:
    """Size of the weights in bytes, of a directory or a GGUF file."""
    files = [model] if model.is_file() else model.glob("*.safetensors")
    return sum(path.stat().st_size for path in files)


def _has_token(folder: Path, marker: str) -> bool:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return False
    added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens", [])
    return any(token.get("content") == marker for token in added)
