"""The cards of the shipped checkpoints state where they come from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

CHECKPOINTS = sorted(path for path in (Path(__file__).parents[1] / "checkpoints").iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda path: path.name)
def test_card_states_base_data_licence_and_command(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    front_matter = yaml.safe_load(card.split("---")[1])
    section = card.partition("## Provenance\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (\w+) \| (.+) \|$", section, re.MULTILINE))
    assert set(rows) == {"base", "data", "licence", "command"}
    assert rows["licence"].lower() == front_matter["license"]
    assert "ih-grpo train" in rows["command"]
    for recipe in re.findall(r"recipes/[\w.-]+\.toml", rows["command"]):
        assert (folder.parents[1] / recipe).is_file()
    base = front_matter.get("base_model")
    assert base in rows["base"] if base else rows["base"].startswith("none")
