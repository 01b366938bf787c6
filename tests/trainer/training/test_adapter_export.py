from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from service.cli.main import app
from service.deferral.policy import DeferralPolicy
from service.engines import adapters
from service.engines.model_lookup import locate
from tests.support.tiny_qwen3 import make_checkpoint
from tests.support.tokens import prompt
from trainer.training.adapter_export import CardText, export_adapter
from trainer.training.config import ConfigError
from trainer.training.lora import attach_adapter, save_adapter
from trainer.training.recipe_tables import LoraSettings

NAME = "org/base"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path) -> Iterator[None]:
    with patch.object(adapters, "cache_dir", lambda: tmp_path / "cache"):
        yield


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "base")


@pytest.fixture
def checkpoint(tmp_path: Path, base: Path) -> Path:
    """A checkpoint of a run that trained an adapter, with random values instead of trained ones."""
    directory = tmp_path / "run" / "checkpoints" / "checkpoint-5"
    directory.mkdir(parents=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    marker_id = tokenizer.get_vocab()["<tool_call>"]
    model = attach_adapter(AutoModelForCausalLM.from_pretrained(base), LoraSettings(rank=4), marker_id)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    save_adapter(model, directory, base_name=NAME, fingerprint=adapters.fingerprint(base))
    tokenizer.save_pretrained(directory)
    DeferralPolicy(max_turns=7).save(directory)
    torch.save({"state": torch.zeros(100_000)}, directory / "optimizer.pt")
    (directory / "run_state.json").write_text(json.dumps({"run_dir": str(tmp_path)}))
    return directory


@torch.inference_mode()
def logits(model_dir: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    result: torch.Tensor = model(torch.tensor([prompt(40)])).logits
    return result


def test_exported_adapter_is_small_and_serves_the_same_model(
    checkpoint: Path, base: Path, tmp_path: Path
) -> None:
    size = export_adapter(checkpoint, tmp_path / "out", base=str(base))
    files = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert files.keys() == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "base.json", "deferral.json",
    }  # fmt: skip
    assert sum(files.values()) == size
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert any("token" in name for name in stored)
    full = checkpoint / "adapter_model.safetensors"
    assert files["adapter_model.safetensors"] < 0.6 * full.stat().st_size
    served = locate(str(tmp_path / "out"), base=str(base))
    assert DeferralPolicy.load(served).max_turns == 7
    found, expected = logits(served), logits(locate(str(checkpoint), base=str(base)))
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    assert (found - logits(base)).abs().max() > 0.2 * expected.abs().max()


def test_nothing_names_a_path_of_this_machine(checkpoint: Path, base: Path, tmp_path: Path) -> None:
    export_adapter(checkpoint, tmp_path / "out", base=str(base))
    for path in (tmp_path / "out").glob("*.[jm][sd]*"):
        assert str(tmp_path) not in path.read_text()


def test_another_tokenizer_is_kept(checkpoint: Path, base: Path, tmp_path: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    export_adapter(checkpoint, tmp_path / "out", base=str(base))
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages[0]['content'] }}!"


def test_model_card(checkpoint: Path, base: Path, tmp_path: Path) -> None:
    warm_start, rl, notes = (tmp_path / name for name in ("warm.toml", "rl.toml", "notes.md"))
    warm_start.write_text('model = "org/base"\nsteps = 100\n')
    rl.write_text('model = "org/base"\ndata = ["org/problems"]\n')
    notes.write_text("## Data\n\nProblems of {{ org }}.\n")
    card = CardText("apache-2.0", (warm_start, rl), notes)
    export_adapter(checkpoint, tmp_path / "out", base=str(base), card=card)
    found = ModelCard.load(tmp_path / "out" / "README.md")
    assert found.data.base_model == NAME
    assert found.data.license == "apache-2.0"
    assert found.data.library_name == "peft"
    for text in (
        adapters.fingerprint(base), "ih-grpo train warm-start --model org/base --recipe warm.toml",
        "ih-grpo train --recipe rl.toml", 'data = ["org/problems"]', "Problems of {{ org }}.",
        "ih-grpo serve --model out", "## Limits", "| licence | apache-2.0 |",
    ):  # fmt: skip
        assert text in found.text


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ('[[rewards]]\nname = "my.rewards:judge"\noptions = { key = "sk-secret" }', "rewards.0.options"),
        ('[[tools]]\nmcp_server = "https://host/mcp?token=abc"', "tools.0.mcp_server"),
    ],
)
def test_recipe_with_a_possible_secret_is_rejected(
    checkpoint: Path, base: Path, tmp_path: Path, table: str, field: str
) -> None:
    recipe = tmp_path / "rl.toml"
    recipe.write_text(f'model = "org/base"\ndata = ["org/problems"]\n{table}\n')
    with pytest.raises(ConfigError, match=rf"rl.toml: {field} may contain a secret"):
        export_adapter(checkpoint, tmp_path / "out", base=str(base), card=CardText(recipes=(recipe,)))
    assert not (tmp_path / "out").exists()


def test_similar_base_keeps_the_fingerprint_of_the_training(
    checkpoint: Path, base: Path, tmp_path: Path
) -> None:
    export_adapter(checkpoint, tmp_path / "first", base=str(base))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    copy = tmp_path / "copy"
    model.save_pretrained(copy)
    AutoTokenizer.from_pretrained(base).save_pretrained(copy)
    export_adapter(tmp_path / "first", tmp_path / "second", base=str(copy))
    first, second = (json.loads((tmp_path / name / "base.json").read_text()) for name in ("first", "second"))
    assert first == second
    assert first["sha256"] == adapters.fingerprint(base) != adapters.fingerprint(copy)


def test_rejects_what_is_not_a_trained_adapter(checkpoint: Path, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="is not an adapter"):
        export_adapter(base, out)
    with pytest.raises(ConfigError, match="is not a hub id"):
        export_adapter(checkpoint, out, base=str(base), base_name=str(base))
    other = make_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="trained on another base"):
        export_adapter(checkpoint, out, base=str(other))
    with pytest.raises(ConfigError, match=r"notes: .* cannot be read"):
        export_adapter(checkpoint, out, base=str(base), card=CardText(notes=tmp_path / "none.md"))
    (checkpoint / "deferral.json").unlink()
    with pytest.raises(ValueError, match=r"has no deferral.json"):
        export_adapter(checkpoint, out, base=str(base))
    assert not out.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_command(checkpoint: Path, base: Path, tmp_path: Path) -> None:
    command = ["train", "export", str(checkpoint), str(tmp_path / "out"), "--base", str(base)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    assert f"MB: ih-grpo serve --model {tmp_path / 'out'}" in result.stderr
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "already exists" in result.stderr
