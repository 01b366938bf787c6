from __future__ import annotations

from pathlib import Path

import pytest

from trainer.training.recipe_files import find_recipe, recipe_folder


@pytest.mark.parametrize("name", ["recipes/quickstart-warm-start.toml", "quickstart-warm-start.toml"])
def test_a_recipe_is_found_outside_a_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe(Path(name)) == recipe_folder() / "quickstart-warm-start.toml"


def test_a_file_of_ones_own_comes_first_and_an_unknown_one_stays_what_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path("recipes/quickstart.toml")
    own.parent.mkdir()
    own.write_text("")
    assert find_recipe(own) == own
    assert find_recipe(Path("recipes/none.toml")) == Path("recipes/none.toml")
    assert find_recipe(tmp_path / "quickstart.toml") == tmp_path / "quickstart.toml"
