"""Checks of a checkpoint before it is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from service.deferral.policy import DeferralPolicy, policy_path
from service.doctor import model
from service.engines.checkpoint import quickstart
from service.engines.gguf.export import export


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the quickstart checkpoint for the test to damage."""
    return Path(shutil.copytree(quickstart(), tmp_path / "copy"))


def test_quickstart_checkpoint_is_ok() -> None:
    folder, found = model.find(str(quickstart()))
    assert folder == quickstart()
    assert found.verdict == "ok"
    assert "trained to defer" in found.found


def test_reports_a_checkpoint_not_trained_to_defer(checkpoint: Path) -> None:
    (checkpoint / "deferral.json").unlink()
    assert "not trained" in model.find(str(checkpoint))[1].found


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("config.json", None, "no config.json"),
        ("model.safetensors", None, "no weights"),
        ("deferral.json", '{"max_turns": 0}', "deferral.json"),
        ("tokenizer.json", json.dumps({"added_tokens": []}), "no token <tool_call>"),
        ("tokenizer.json", None, "no token <tool_call>"),
    ],
)
def test_names_the_missing_file(checkpoint: Path, name: str, text: str | None, words: str) -> None:
    if text is None:
        (checkpoint / name).unlink()
    else:
        (checkpoint / name).write_text(text)
    found = model.find(str(checkpoint))[1]
    assert found.verdict == "fail"
    assert words in found.found
    assert found.hint


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    path = tmp_path / "quickstart.gguf"
    export(quickstart(), path)
    return path


def test_gguf_file_is_checked_like_a_checkpoint(gguf_file: Path) -> None:
    path, found = model.find(str(gguf_file))
    assert (path, found.verdict) == (gguf_file, "ok")
    assert found.found == "quickstart.gguf, 4 MiB, trained to defer"
    assert model.weights(gguf_file) == gguf_file.stat().st_size
    policy_path(gguf_file).unlink()
    assert "not trained" in model.find(str(gguf_file))[1].found


def test_reports_what_is_wrong_with_a_gguf_file(gguf_file: Path) -> None:
    assert "No such file" in model.find("none.gguf")[1].found
    DeferralPolicy(marker="<run>").save(gguf_file)
    assert "no token <run>" in model.find(str(gguf_file))[1].found
    policy_path(gguf_file).write_text('{"max_turns": 0}')
    assert "quickstart.gguf.deferral.json" in model.find(str(gguf_file))[1].found
    gguf_file.write_bytes(gguf_file.read_bytes()[:1000])
    found = model.find(str(gguf_file))[1]
    assert (found.verdict, "not a complete GGUF file" in found.found) == ("fail", True)


def test_a_hub_id_is_not_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder, found = model.find("nobody/nothing-of-this-name")
    assert folder is None
    assert found.verdict == "warn"


def test_rejects_name_that_is_not_a_directory_or_hub_id() -> None:
    folder, found = model.find("no/such/folder/here")
    assert folder is None
    assert found.verdict == "fail"


def test_adapter_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    found = model.find(str(tmp_path))[1]
    assert (found.verdict, found.found) == ("fail", f"{tmp_path} has no adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").touch()
    folder, found = model.find(str(tmp_path))
    assert (folder, found.verdict) == (None, "warn")
    assert "org/base is not downloaded yet" in found.found
    (tmp_path / "adapter_config.json").write_text("{")
    assert model.find(str(tmp_path))[1].verdict == "fail"


def test_adapter_and_its_base(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "adapter").mkdir()
    adapter = tmp_path / "adapter"
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": ""}')
    (adapter / "adapter_model.safetensors").touch()
    assert "names no base model" in model.find(str(adapter))[1].found
    assert "is also an adapter" in model.find(str(adapter), str(adapter))[1].found
    folder, found = model.find(str(adapter), str(checkpoint))
    assert (folder, found.verdict) == (checkpoint, "ok")
    assert f"adapter is an adapter of {checkpoint}, to be merged" in found.found
    (adapter / "base.json").write_text('{"sha256": "0000"}')
    found = model.find(str(adapter), str(checkpoint))[1]
    assert found.verdict == "fail"
    assert "trained on another base" in found.found
    (checkpoint / "model.safetensors").unlink()
    assert "base of adapter:" in model.find(str(adapter), str(checkpoint))[1].found


def test_full_model_rejects_base(checkpoint: Path) -> None:
    found = model.find(str(checkpoint), str(checkpoint))[1]
    assert (found.verdict, found.hint) == ("fail", "remove base")
