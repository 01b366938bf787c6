from __future__ import annotations

import json
import zlib
from base64 import urlsafe_b64decode
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.trainer.training.test_run_files import TEXT, TURN, scored
from trainer.cli.show import app
from trainer.rewards.registry import RewardPart
from trainer.training.run_files import write_rollout


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    write_rollout(tmp_path / "rollout.parquet", 0, [scored(), scored(None)])
    return tmp_path / "rollout.parquet"


def show(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})


def test_lists_rows(saved: Path) -> None:
    shown = show(saved).stdout
    [row] = [line for line in shown.splitlines() if line.startswith("│   0 │")]
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "0",
        "p1",
        "1",
        "correct",
        "answer",
        "1",
        "1 of 2",
        "4.00",
    ]


def test_shows_episode_with_timeline(saved: Path) -> None:
    shown = show(saved, "--row", "0").stdout
    assert TURN in shown
    lanes = [line.split()[0:2] for line in shown.splitlines() if "█" in line]
    assert [lane[0] for lane in lanes] == ["writes", "block", "block", "waits"]


def test_link_replays_episode_with_known_times(saved: Path) -> None:
    link = show(saved, "--row", "0", "--url", "http://host:8000/").stdout.strip().splitlines()[-1]
    base, _, packed = link.partition("#e=")
    assert base == "http://host:8000/"
    episode = json.loads(zlib.decompress(urlsafe_b64decode(packed + "=" * (-len(packed) % 4)), -15))
    assert "".join(value for _, kind, value in episode["events"] if kind in "to") == TEXT
    assert episode["events"][-1][0] == episode["ended"] == 4000


def test_writes_html_page(saved: Path, tmp_path: Path) -> None:
    page = tmp_path / "episode.html"
    assert f"written: {page}" in show(saved, "--row", "1", "--html", page).stdout
    assert 'data-episode="#e=' in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--row", "2"], "has 2 rows: --row must be at most 1"),
        (["--url", "http://x"], "--row is missing"),
    ],
)
def test_rejects_invalid_options(saved: Path, arguments: list[str], complaint: str) -> None:
    result = show(saved, *arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr


def test_several_rewards_are_shown(tmp_path: Path) -> None:
    parts = {"math": RewardPart(1.0, "correct"), "tool_wait": RewardPart(None, "no_verdict")}
    write_rollout(tmp_path / "rollout.parquet", 0, [replace(scored(), parts=parts)])
    shown = show(tmp_path / "rollout.parquet", "--row", "0").stdout
    assert "rewards: math 1 (correct), tool_wait none (no_verdict)" in shown
