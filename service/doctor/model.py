"""Checks of the checkpoint, without loading or downloading it."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from service.deferral.policy import ASSISTANT_POLICY, FILE_NAME, DeferralPolicy
from service.doctor import CheckResult
from service.engines import adapters


def find(model: str) -> tuple[Path | None, CheckResult]:
    """Return the checkpoint's directory, None if unavailable, and whether it can be served."""
    path = Path(model).expanduser()
    if path.exists():
        return _check(path)
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(model, "config.json")
    except ValueError:
        hint = "set model to a directory with config.json, or to a hub id such as Qwen/Qwen3-1.7B"
        return None, CheckResult("model", "fail", f"{model!r} is neither a directory nor a hub id", hint)
    if not isinstance(cached, str):
        return None, CheckResult(
            "model", "warn", f"{model} is not downloaded yet", "it will be downloaded at the first start"
        )
    return _check(Path(cached).parent)


def _check(folder: Path) -> tuple[Path | None, CheckResult]:
    if adapters.is_adapter(folder):
        return _check_adapter(folder)
    if not (folder / "config.json").is_file():
        return None, CheckResult(
            "model", "fail", f"{folder} has no config.json", "set model to the directory of a checkpoint"
        )
    try:
        policy = DeferralPolicy.load(folder, default=ASSISTANT_POLICY)
    except (ValidationError, ValueError) as error:
        reason = str(error).splitlines()[0]
        return folder, CheckResult(
            "model", "fail", f"{folder / FILE_NAME}: {reason}", "fix or remove the file"
        )
    if weights(folder) == 0:
        return folder, CheckResult(
            "model", "fail", f"{folder} has no weights", "copy its *.safetensors as well"
        )
    if not _has_token(folder, policy.marker):
        return folder, CheckResult(
            "model",
            "fail",
            f"{folder}: the tokenizer has no token {policy.marker}",
            "serve a Qwen3 checkpoint, or one trained with a marker that deferral.json names",
        )
    training = (
        "trained to defer" if (folder / FILE_NAME).is_file() else "not trained to defer: ordinary prompting"
    )
    return folder, CheckResult(
        "model", "ok", f"{folder.name}, {weights(folder) / 2**20:,.0f} MiB, {training}"
    )


def _check_adapter(folder: Path) -> tuple[Path | None, CheckResult]:
    try:
        config = json.loads((folder / adapters.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return None, CheckResult(
            "model", "fail", f"{folder / adapters.CONFIG}: {error}", "copy the adapter again"
        )
    if not (folder / adapters.WEIGHTS).is_file():
        return None, CheckResult("model", "fail", f"{folder} has no {adapters.WEIGHTS}", "copy it as well")
    base = config.get("base_model_name_or_path")
    found = f"{folder.name} is an adapter of {base}, to be merged at the first start"
    return None, CheckResult("model", "ok", found)


def weights(folder: Path) -> int:
    """Size of the weights in bytes."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _has_token(folder: Path, marker: str) -> bool:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return False
    added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens", [])
    return any(token.get("content") == marker for token in added)
