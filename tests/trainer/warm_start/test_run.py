"""Whole warm starts of a tiny model."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from service.deferral.policy import DeferralPolicy
from service.engines.adapters import merged
from service.engines.checkpoint import CheckpointError
from tests.support.tiny_qwen3 import make_checkpoint
from trainer.training.config import ConfigError
from trainer.warm_start.recipe import WarmStartRecipe, load_warm_start
from trainer.warm_start.run import LOG_FILE, run_warm_start


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(
        tmp_path_factory.mktemp("base") / "model", initializer_range=0.05, max_position_embeddings=2048
    )


def recipe(run_dir: Path, base: Path, **changes: Any) -> WarmStartRecipe:
    values = {
        "model": str(base), "run_dir": run_dir, "steps": 4, "texts_per_step": 4, "micro_batch_texts": 2,
        "learning_rate": 3e-3, "dtype": "float32", "device": "cpu", "threads": 1, "chat_share": 0.0,
        "measure_every": 2, "save_every": 2, "held_out_texts": 4, "max_tokens": 1500,
    }  # fmt: skip
    return WarmStartRecipe.model_validate({**values, **changes})


def run(settings: WarmStartRecipe) -> tuple[Path, str]:
    console = Console(file=io.StringIO(), width=200)
    return run_warm_start(settings, console), console.file.getvalue()  # type: ignore[attr-defined]


def log_of(settings: WarmStartRecipe) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (settings.run_dir / LOG_FILE).read_text().splitlines()]


def test_an_adapter_learns_and_can_be_merged(tmp_path: Path, base: Path) -> None:
    settings = recipe(tmp_path / "run", base, steps=20, learning_rate=1e-2, save_every=20)
    checkpoint, text = run(settings)
    held_out = [line["held_out"]["loss"] for line in log_of(settings) if "held_out" in line]
    assert held_out[-1] < 0.9 * held_out[0]
    assert "row of <tool_call>" in text
    assert "held out: loss" in text
    policy = DeferralPolicy.load(checkpoint)
    assert (policy.mode, policy.unflushed, policy.prompt) == ("deferred", "run", "assistant-v1")
    assert str(base) not in (checkpoint / "adapter_config.json").read_text()
    whole = merged(checkpoint, base)
    before, after = load_file(base / "model.safetensors"), load_file(whole / "model.safetensors")
    assert before.keys() == after.keys()
    assert not torch.equal(
        before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"]
    )


@pytest.mark.parametrize("weights", ["lora", "full"])
def test_a_resumed_run_ends_as_one_that_was_not_cut_off(tmp_path: Path, base: Path, weights: str) -> None:
    fields = {"weights": weights, "lora": {"rank": 4, "dropout": 0.1 if weights == "lora" else 0.0}}
    whole = recipe(tmp_path / "whole", base, **fields)
    expected, _ = run(whole)
    cut = recipe(tmp_path / "cut", base, **fields)
    stop_at_two(cut)
    resumed, text = run(cut)
    assert "resumed at step 2" in text
    name = "adapter_model.safetensors" if weights == "lora" else "model.safetensors"
    one, other = load_file(expected / name), load_file(resumed / name)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    steps = [line["step"] for line in log_of(cut) if "loss" in line]
    assert steps == [1, 2, 3, 4]


class _CutOffError(Exception):
    pass


def stop_at_two(settings: WarmStartRecipe) -> None:
    """Run until just after the checkpoint of step 2."""
    import trainer.warm_start.run as module

    original = module._step

    def step(recipe: Any, learner: Any, texts: Any, number: int) -> Any:
        if number == 2:
            raise _CutOffError
        return original(recipe, learner, texts, number)

    module._step = step
    try:
        with pytest.raises(_CutOffError):
            run(settings)
    finally:
        module._step = original


def test_chat_is_sampled_once_and_kept(tmp_path: Path, base: Path) -> None:
    settings = recipe(
        tmp_path / "run", base, chat_share=0.5, chat_samples=8, chat_max_tokens=400, steps=1, save_every=1
    )
    chat = settings.run_dir / "chat.jsonl"
    chat.parent.mkdir()
    chat.write_text('{"request": "Hello there.", "answer": "Hello, you."}\n')
    _, text = run(settings)
    assert "sampling" not in text
    assert "1 chats" in text


def test_a_run_does_not_resume_with_another_recipe(tmp_path: Path, base: Path) -> None:
    settings = recipe(tmp_path / "run", base, steps=1, save_every=1)
    run(settings)
    with pytest.raises(ConfigError, match="chat_samples is 7, but the run in"):
        run(settings.model_copy(update={"chat_samples": 7}))
    checkpoint = settings.run_dir / "checkpoints" / "checkpoint-1"
    (checkpoint / "warm_start.json").write_text("")
    sizes = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps({**sizes, "warm_start.json": 0}))
    with pytest.raises(CheckpointError, match="not a checkpoint of a warm start"):
        run(settings)


@pytest.mark.parametrize("weights", ["lora", "full"])
def test_a_run_does_not_resume_with_another_base(tmp_path: Path, base: Path, weights: str) -> None:
    settings = recipe(tmp_path / "run", base, steps=1, save_every=1, weights=weights)
    run(settings)
    moved = shutil.copytree(base, tmp_path / "moved")
    run(settings.model_copy(update={"model": str(moved)}))
    tensors = load_file(moved / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="model: its weights differ from those that the run in"):
        run(settings.model_copy(update={"model": str(moved)}))


def test_a_resumed_run_keeps_its_solutions(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if some are missing because the sandbox failed."""
    calls: list[Path] = []

    async def sample_solutions(*arguments: Any, **_: object) -> int:
        path = arguments[4]
        calls.append(path)
        segments = [
            {"text": "```python\nprint(6 * 7)\n```<tool_call>", "source": "written"},
            {"text": "42\n", "source": "observed"},
            {"text": "So \\boxed{42}.", "source": "written"},
        ]
        solution = {
            "problem": "p", "sample": 0, "question": "What is 6 * 7?", "reward": 1.0, "delayed": 0,
            "verdict": "kept", "segments": segments,
        }  # fmt: skip
        path.write_text(json.dumps(solution) + "\n")
        return 1

    monkeypatch.setattr("trainer.warm_start.run.sample_solutions", sample_solutions)
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"question": "What is 6 * 7?", "answer": "42"}\n')
    solved = {"problems": [str(problems)], "samples": 2}
    settings = recipe(tmp_path / "run", base, steps=1, save_every=1, solved=solved)
    _, text = run(settings)
    assert "1 samples left out: the sandbox or the reward failed" in text
    run(settings)
    assert len(calls) == 1


def test_the_rate_rises_holds_and_falls(tmp_path: Path, base: Path) -> None:
    settings = recipe(tmp_path, base, steps=100, warmup_steps=4)
    factors = [settings.learning_rate_factor(step) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[50] == 1.0
    assert factors[75] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.02)
    assert recipe(tmp_path, base, learning_rate=None).effective_learning_rate == 3e-4
    assert recipe(tmp_path, base, learning_rate=None, weights="full").effective_learning_rate == 1e-5


def test_recipes_are_read_with_overrides(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('model = "a"\nrun_dir = "b"\n[lora]\nrank = 8\n')
    found = load_warm_start(path, ["lora.rank=4", "model=some/model"])
    assert (found.lora.rank, found.model) == (4, "some/model")
    with pytest.raises(ConfigError, match="lora"):
        load_warm_start(path, ["lora.rnk=4"])
    with pytest.raises(ConfigError, match="must divide"):
        load_warm_start(path, ["micro_batch_texts=4"])
    with pytest.raises(ConfigError, match="policy"):
        load_warm_start(path, ["policy.prompt=nonsense"])
