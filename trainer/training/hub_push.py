"""Upload of a checkpoint to the Hugging Face hub, with a model card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from accelerate import PartialState
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelCardData, constants

from service.deferral.policy import DeferralPolicy
from service.engines.checkpoint import MANIFEST
from trainer.rewards.registry import RewardSpec
from trainer.rewards.shipped import SHIPPED
from trainer.training.checkpoints import MAY_CHANGE, STATE_FILE
from trainer.training.config import ConfigError, TrainConfig
from trainer.training.run_info import EVAL_ACCURACY, Metrics, log_history

_TEMPLATE: Final = Path(__file__).parent / "templates" / "model_card.md.jinja"
_FILES: Final = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
_STATE_FILES: Final = frozenset({MANIFEST, STATE_FILE, "trainer_state.json"})
_HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w.-]+")


class PushError(Exception):
    """The upload failed; the message gives the reason and a hint."""


def prepare_push(config: TrainConfig) -> None:
    """Create the repository ``config.push_to`` if it does not exist, so that a missing token or right is
    reported before the run. Does nothing if the recipe has none, and on processes other than the main one.

    Raises:
        ConfigError: the repository cannot be created or written.
    """
    if config.push_to is None or not PartialState().is_main_process:
        return
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("push_to is set, but HF_HUB_OFFLINE forbids uploads: unset one of them")
    try:
        api = HfApi()
        api.create_repo(config.push_to, private=config.push_private, exist_ok=True)
        api.auth_check(config.push_to, write=True)
    except Exception as error:  # the hub client's errors have no common base class
        raise ConfigError(f"push_to: cannot write to {config.push_to}: {_explain(error)}") from error


def push(checkpoint: Path, config: TrainConfig, repo: str) -> str:
    """Upload a checkpoint to ``repo`` in one commit: weights, tokenizer, settings and a model card.

    The optimiser state and the run's own files are not uploaded.

    Args:
        checkpoint: of the run.
        config: the run.
        repo: created if it does not exist.

    Returns:
        The URL of the repository.

    Raises:
        PushError: the upload failed.
    """
    names = sorted({path.name for pattern in _FILES for path in checkpoint.glob(pattern)} - _STATE_FILES)
    operations = [CommitOperationAdd(name, str(checkpoint / name)) for name in names]
    operations.append(CommitOperationAdd("README.md", model_card(checkpoint, config, repo).encode()))
    try:
        api = HfApi()
        url = api.create_repo(repo, private=config.push_private, exist_ok=True)
        api.create_commit(repo, operations, commit_message=f"Upload {checkpoint.name}")
    except Exception as error:
        raise PushError(f"cannot upload {checkpoint} to {repo}: {_explain(error)}") from error
    return str(url)


def model_card(checkpoint: Path, config: TrainConfig, repo: str) -> str:
    """Return the model card of a checkpoint. It contains no path of this machine, and no command or URL of a
    tool."""
    base_model = config.model if _is_hub_id(config.model) else None
    is_adapter = (checkpoint / "adapter_config.json").exists()
    data = ModelCardData(
        base_model=base_model,
        datasets=[_without_split(source) for source in config.data if _is_hub_id(source)] or None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["ih-grpo", "grpo", "reinforcement-learning", "code-interpreter"],
    )
    card: ModelCard = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        name=repo.rpartition("/")[2],
        repo=repo,
        base_model=base_model,
        is_adapter=is_adapter,
        mode=DeferralPolicy.load(checkpoint).mode,
        results=_results(checkpoint, log_history(checkpoint)),
        data=_describe_data(config),
        recipe=_describe_recipe(config),
    )
    return str(card)


def _results(checkpoint: Path, history: Sequence[Metrics]) -> list[tuple[str, str]]:
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    results = [("optimiser steps", str(step))]
    validated = {int(record["step"]): record for record in history if EVAL_ACCURACY in record}
    if 0 in validated:
        results.append(("validation accuracy before training", f"{validated[0][EVAL_ACCURACY]:.1%}"))
    if step in validated:
        results.append(("validation accuracy", f"{validated[step][EVAL_ACCURACY]:.1%}"))
    last = next((record for record in reversed(history) if "reward" in record), {})
    for label, name, template in (
        ("training reward, last step", "reward", "{:.3f}"),
        ("delay rate, last step", "delay_rate", "{:.1%}"),
        ("response tokens, last step", "response_tokens", "{:.0f}"),
    ):
        if name in last:
            results.append((label, template.format(last[name])))
    return results


def _describe_data(config: TrainConfig) -> str:
    names = [source if _is_hub_id(source) or _is_generated(source) else Path(source).name
             for source in config.data]  # fmt: skip
    return f"Data: {', '.join(names)}. Recipe, without the settings that do not affect the result:"


def _describe_recipe(config: TrainConfig) -> list[tuple[str, str]]:
    hidden: dict[str, Any] = dict.fromkeys(MAY_CHANGE - {"steps"}, True)
    # A URL may contain a token, and a command a path.
    hidden |= {"lora": {"adapter"}, "tools": {"__all__": {"mcp_server"}}}
    values = config.model_dump(mode="json", exclude=hidden)
    values["rewards"] = [_describe_reward(spec) for spec in config.rewards]
    return [
        (name, value if isinstance(value, str) else json.dumps(value))
        for name, value in values.items()
        if value not in (None, {}, [])
    ]


def _describe_reward(spec: RewardSpec) -> dict[str, Any]:
    options = public_options(spec.name, spec.options)
    return {"name": spec.name, "weight": spec.weight, **({"options": options} if options else {})}


def public_options(reward: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a reward that a model card may show: numbers and switches of a shipped reward.

    Other options may be a path, a URL or a secret.
    """
    if reward not in SHIPPED:
        return {}
    return {name: value for name, value in options.items() if isinstance(value, (bool, int, float))}


def _is_generated(source: str) -> bool:
    return source.startswith("quickstart")


def _is_hub_id(source: str) -> bool:
    return (
        _HUB_ID.fullmatch(_without_split(source)) is not None
        and Path(source).suffix not in (".parquet", ".json", ".jsonl", ".gz")
        and not Path(source).expanduser().exists()
    )


def _without_split(source: str) -> str:
    return source.partition(":")[0]


def _explain(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return (
            "the hub rejected the token: create one with write access in the settings of your account, then "
            "run `hf auth login` or set HF_TOKEN"
        )
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
