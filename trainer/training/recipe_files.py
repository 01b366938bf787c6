"""Find a recipe by its path, also where there is no checkout: the wheel holds the repository's recipes."""

from __future__ import annotations

from pathlib import Path


def recipe_folder() -> Path:
    """Return the folder of recipes: inside ``trainer`` once installed, beside it in a checkout."""
    installed = Path(__file__).parents[1] / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "recipes"


def find_recipe(path: Path) -> Path:
    """Return ``path`` if it exists, else the packaged recipe that it names, as ``recipes/NAME.toml``.

    A path that names neither is returned as it is; reading it reports the error.
    """
    if path.exists() or path.is_absolute():
        return path
    packaged = recipe_folder() / Path(*(path.parts[1:] if path.parts[:1] == ("recipes",) else path.parts))
    return packaged if packaged.is_file() else path
