from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from service.cli.main import app
from service.deferral.policy import DeferralPolicy
from service.engines.checkpoint import quickstart
from service.engines.model_lookup import locate
from tests.support.peft_adapters import make_adapter
from tests.support.tiny_qwen3 import make_checkpoint, make_tokenizer

RUN = CliRunner()
MARKER = make_tokenizer().convert_tokens_to_ids("<tool_call>")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    base = make_checkpoint(tmp_path / "base")
    directory = tmp_path / "adapter"
    model = AutoModelForCausalLM.from_pretrained(base)
    make_adapter(model, directory, base=base, trainable_token_indices=[MARKER])
    DeferralPolicy(max_turns=7).save(directory)
    config = json.loads((directory / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = ""
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def test_writes_a_plain_checkpoint(adapter: Path, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "deep" / "merged"
    result = RUN.invoke(app, ["merge", str(adapter), str(out), "--base", str(base)])
    assert result.exit_code == 0, result.stderr
    assert "ih-grpo serve --model" in result.stderr
    assert locate(str(out)) == out
    assert DeferralPolicy.load(out).max_turns == 7
    names = {path.name for path in out.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "deferral.json"}
    assert not any("adapter" in name for name in names)
    assert [path.name for path in out.parent.iterdir()] == ["merged"]
    ids = torch.tensor([[1, 2, MARKER, 4]])
    before, after = (AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in (base, out))
    assert (before - after).abs().max() > 0.01


def test_says_why_it_does_not_merge(adapter: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    for arguments, message in (
        ([str(adapter), str(tmp_path / "out")], "set --base"),
        ([str(adapter), str(base), "--base", str(base)], "already exists"),
        ([str(base), str(tmp_path / "out")], "is not an adapter"),
        ([str(adapter), str(tmp_path / "out"), "--base", str(tmp_path / "none")], "was not found"),
    ):
        result = RUN.invoke(app, ["merge", *arguments])
        assert result.exit_code == 2
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_writes_a_gguf_file_of_an_adapter(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    base, file = tmp_path / "base", tmp_path / "deep" / "merged.gguf"
    result = RUN.invoke(app, ["merge", str(adapter), "--base", str(base), "--gguf", str(file)])
    assert result.exit_code == 0, result.stderr
    assert "ih-grpo serve --model" in result.stderr
    assert DeferralPolicy.load(file).max_turns == 7
    assert sorted(path.name for path in file.parent.iterdir()) == [
        "merged.gguf",
        "merged.gguf.deferral.json",
    ]
    merged = locate(str(adapter), base=str(base))
    weight = load_file(merged / "model.safetensors")["model.embed_tokens.weight"]
    (embedding,) = (t for t in gguf.GGUFReader(file).tensors if t.name == "token_embd.weight")
    assert (torch.tensor(embedding.data[MARKER].astype("float32")) - weight[MARKER]).abs().max() < 0.01


def test_writes_a_gguf_file_of_a_full_checkpoint_and_warns_about_its_tokenizer(tmp_path: Path) -> None:
    file = tmp_path / "quickstart.gguf"
    result = RUN.invoke(app, ["merge", str(quickstart()), "--gguf", str(file), "--gguf-type", "q8_0"])
    assert result.exit_code == 0, result.stderr
    assert "other programs encode some text differently" in result.stderr
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert types == {"F32", "Q8_0"}


def test_says_why_it_writes_no_gguf_file(adapter: Path, tmp_path: Path) -> None:
    base = str(tmp_path / "base")
    (tmp_path / "mine.gguf").touch()
    for arguments, message in (
        ([str(adapter)], "give OUT or --gguf FILE"),
        ([base, "--gguf", str(tmp_path / "model.bin")], "must end in .gguf"),
        ([base, "--gguf", str(tmp_path / "mine.gguf")], "already exists"),
        ([base, "--gguf", str(tmp_path / "a.gguf"), "--base", base], "remove base"),
        ([base, "--gguf", str(tmp_path / "a.gguf"), "--gguf-type", "q4_0"], "q8_0"),
    ):
        result = RUN.invoke(app, ["merge", *arguments])
        assert result.exit_code == 2
        assert message in result.stderr
        assert "Traceback" not in result.stderr
