"""Export of a trained adapter for publication: bfloat16 weights, protocol, base model and a model card."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import load_file, save_file

from service.deferral.policy import FILE_NAME, DeferralPolicy
from service.engines import adapters, execute_head
from service.engines.model_lookup import base_of
from service.engines.tokenizer import HFTokenizer
from service.engines.weight_sample import sample_weights
from trainer.training.config import ConfigError, find_recipe
from trainer.training.hub_push import public_options

_TEMPLATE: Final = Path(__file__).parent / "templates" / "adapter_card.md.jinja"
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
_TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True)
class CardText:
    """Text of a model card, besides the facts in the checkpoint."""

    licence: str | None = None
    """Licence of the base model, such as ``apache-2.0``; also the adapter's."""
    recipes: tuple[Path, ...] = ()
    """Recipes of the runs that trained the adapter, in order. Their content is part of the card."""
    notes: Path | None = None
    """Markdown file to include, with sections such as Data, Results and Limits."""


def export_adapter(
    checkpoint: Path,
    out: Path,
    *,
    base: str | None = None,
    base_name: str | None = None,
    card: CardText = CardText(),
) -> int:
    """Write the adapter of ``checkpoint`` to ``out``, completely or not at all.

    Weights are rounded to bfloat16. Optimiser and run state are left out, and so is the tokenizer if it
    equals that of the base model.

    Args:
        checkpoint: directory of an adapter with ``deferral.json``.
        out: directory to create.
        base: directory or hub id of the base model. Default: the one that the adapter names.
        base_name: hub id of the base model to write into the adapter. Default: the one that the adapter
            names.
        card: text of the model card.

    Returns:
        The size of all files, in bytes.

    Raises:
        ConfigError: ``base_name`` is missing or is not a hub id, a recipe or the notes are unreadable, or
            a recipe has a field that may contain a secret.
        ValueError: ``out`` exists, ``checkpoint`` is not an adapter with a protocol, or the base is
            missing or a different model.
    """
    if not adapters.is_adapter(checkpoint):
        raise ValueError(f"{checkpoint} is not an adapter: it has no {adapters.CONFIG}")
    if not (checkpoint / adapters.WEIGHTS).is_file():
        raise ValueError(f"the adapter {checkpoint} has no {adapters.WEIGHTS}")
    if not (checkpoint / FILE_NAME).is_file():
        raise ValueError(f"{checkpoint} has no {FILE_NAME}: it was not trained to defer code")
    config = adapters.read_config(checkpoint)
    name = base_name or config.get("base_model_name_or_path") or ""
    if not _HUB_ID.fullmatch(name) or Path(name).exists():
        raise ConfigError(f"base_name: {name!r} is not a hub id: pass one such as Qwen/Qwen3-0.6B")
    base_dir = base_of(checkpoint, base)
    adapters.check_base(checkpoint, base_dir)
    if out.exists():
        raise ValueError(f"{out} already exists: choose another directory")
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _write_weights(checkpoint, staging)
        config = {**config, "base_model_name_or_path": name}
        (staging / adapters.CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        identity = _base_identity(checkpoint, base_dir)
        identity.save(staging)
        for source in _files_to_keep(checkpoint, base_dir):
            shutil.copyfile(source, staging / source.name)
        text = _model_card(out.name, checkpoint, identity.sha256, config, card)
        (staging / "README.md").write_text(text + "\n", encoding="utf-8")
        staging.chmod(0o755)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return sum(path.stat().st_size for path in out.iterdir())


def _write_weights(checkpoint: Path, target: Path) -> None:
    tensors = {
        name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(checkpoint / adapters.WEIGHTS).items()
    }
    save_file(tensors, target / adapters.WEIGHTS, {"format": "pt"})
    (target / adapters.WEIGHTS).chmod(0o644)


def _base_identity(checkpoint: Path, base_dir: Path) -> adapters.BaseIdentity:
    """Fingerprint and sample of the base that the adapter was trained on."""
    sha256 = adapters.fingerprint(base_dir)
    known = adapters.read_base(checkpoint)
    if known is not None and known.sha256 != sha256:  # a similar copy: `check_base` has compared the samples
        return known
    return adapters.BaseIdentity(sha256, sample_weights(base_dir))


def _files_to_keep(checkpoint: Path, base_dir: Path) -> Iterator[Path]:
    yield checkpoint / FILE_NAME
    for name in ("generation_config.json", execute_head.FILE_NAME):
        if (checkpoint / name).is_file():
            yield checkpoint / name
    if (checkpoint / "tokenizer.json").is_file() and not _same_tokenizer(checkpoint, base_dir):
        yield from (checkpoint / name for name in _TOKENIZER_FILES if (checkpoint / name).is_file())


def _same_tokenizer(one: Path, other: Path) -> bool:
    """Whether two directories have the same tokens and chat template, however their files are written."""
    sample: list[dict[str, object]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  How much is 12 * 3.5?\n\n\tÄ中<tool_call>"},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "```python\nprint('x')\n```"},
    ]
    tokenizers = [HFTokenizer(str(path)) for path in (one, other)]
    vocabularies = [_vocabulary(path) for path in (one, other)]
    rendered = [tokenizer.render_chat(sample) for tokenizer in tokenizers]
    return vocabularies[0] == vocabularies[1] and rendered[0] == rendered[1]


def _vocabulary(directory: Path) -> object:
    data = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair)
              for pair in data["model"].get("merges", [])]  # fmt: skip
    return data["model"]["vocab"], merges, data["added_tokens"]


def _model_card(name: str, checkpoint: Path, sha256: str, config: dict[str, Any], card: CardText) -> str:
    base_name = config["base_model_name_or_path"]
    recipes = [_read_recipe(path) for path in card.recipes]
    data = ModelCardData(
        base_model=base_name,
        library_name="peft",
        license=card.licence,
        pipeline_tag="text-generation",
        tags=["ih-grpo", "lora", "code-interpreter"],
    )
    text: ModelCard = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        name=name,
        base_name=base_name,
        licence=card.licence,
        sha256=sha256,
        rank=config.get("r"),
        trains_marker=bool(config.get("trainable_token_indices")),
        policy=DeferralPolicy.load(checkpoint),
        recipes=recipes,
        notes=_read(card.notes, "notes").strip() if card.notes else "",
    )
    return str(text)


def _read_recipe(path: Path) -> dict[str, str]:
    content = _read(find_recipe(path), "recipe").strip()
    try:
        fields = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe {path} is not TOML: {error}") from None
    if private := _private_field(fields):
        raise ConfigError(
            f"recipe {path}: {private} may contain a secret or a path, and the model card would publish it: "
            f"pass a copy of the recipe without it"
        )
    # Only recipes of reinforcement learning name training problems.
    command = (
        "train --recipe" if "data" in fields else f"train warm-start --model {fields.get('model')} --recipe"
    )
    return {"name": path.name, "command": f"ih-grpo {command} {path.name}", "content": content}


def _private_field(fields: Mapping[str, Any]) -> str | None:
    """Return the first field of a recipe that a model card must not show, or None."""
    for index, reward in enumerate(fields.get("rewards", ())):
        options = reward.get("options", {})
        if public_options(reward.get("name", ""), options) != options:
            return f"rewards.{index}.options"
    for index, tool in enumerate(fields.get("tools", ())):
        if "mcp_server" in tool:
            return f"tools.{index}.mcp_server"
    return None


def _read(path: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: {path} cannot be read: {error}") from None
