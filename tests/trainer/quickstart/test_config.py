from __future__ import annotations

from pathlib import Path

import pytest

from trainer.quickstart.config import RecipeError, WarmStartConfig

RECIPES = Path(__file__).parents[3] / "recipes"


@pytest.mark.parametrize(
    "path", sorted(RECIPES.glob("quickstart-warm-start*.toml")), ids=lambda path: path.stem
)
def test_shipped_recipes_load(path: Path) -> None:
    assert WarmStartConfig.load(path).policy.prompt == "brief-v1"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("steps = 0", "steps"),
        ("hiden_size = 8", "hiden_size: unknown field. Did you mean hidden_size"),
        ("steps =", "not TOML"),
        ('[policy]\nprompt = "brief-v9"', "brief-v9"),
    ],
)
def test_rejects_invalid_recipes(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError, match=complaint):
        WarmStartConfig.load(path)


def test_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read recipe"):
        WarmStartConfig.load(tmp_path / "none.toml")


def test_learning_rate_warms_up_stays_and_decays() -> None:
    config = WarmStartConfig(steps=100, warmup_steps=9, learning_rate=1.0)
    rates = [config.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[49] == 1.0
    assert rates[75] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.02)


def test_weak_run_keeps_schedule() -> None:
    whole, weak = WarmStartConfig(steps=100), WarmStartConfig(steps=30, learning_steps=100)
    assert [weak.learning_rate_at(i) for i in range(30)] == [whole.learning_rate_at(i) for i in range(30)]
