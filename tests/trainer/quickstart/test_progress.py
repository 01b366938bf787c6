from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from trainer.quickstart.config import WarmStartConfig
from trainer.quickstart.progress import describe, train_with_progress, with_overrides


def test_overrides_keep_the_schedule(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text("steps = 100\n", encoding="utf-8")
    assert with_overrides(recipe, steps=None, threads=None) == WarmStartConfig(steps=100)
    weak = with_overrides(recipe, steps=40, threads=1)
    assert (weak.steps, weak.learning_steps, weak.threads) == (40, 100, 1)


def test_describe_trains_nothing(tiny: WarmStartConfig, tmp_path: Path) -> None:
    out = io.StringIO()
    describe(tiny, tmp_path / "out", Console(file=out, width=100))
    assert "6 steps of 2 x 960 tokens" in out.getvalue()
    assert "```<tool_call>" in out.getvalue()
    assert not (tmp_path / "out").exists()


def test_progress_tells_what_was_measured(tiny: WarmStartConfig, tmp_path: Path) -> None:
    out = io.StringIO()
    train_with_progress(tiny, tmp_path, Console(file=out, width=200))
    assert "step 3  loss" in out.getvalue()
    assert (tmp_path / "model.safetensors").exists()
