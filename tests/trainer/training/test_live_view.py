from __future__ import annotations

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from trainer.training.live_view import HISTORY, LiveView, group_shares, reason_shares, share_bar, sparkline

LOGS = {
    "reward": 0.25,
    "delay_rate": 0.5,
    "tokens_per_second": 1234.4,
    "skipped_steps": 0.0,
    "groups/kept": 0.75,
    "groups/zero_std": 0.25,
    "rewards/math": 0.25,
    "rewards/math/incorrect": 0.5,
    "rewards/math/correct": 0.25,
    "rewards/math/no_answer": 0.25,
    "rewards/length/scored": 1.0,
}


def drawn(view: LiveView, *, color: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=100, force_terminal=color, color_system="standard" if color else None
    )
    console.print(view())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_sparkline_scales_from_lowest_to_highest() -> None:
    assert sparkline([0, 0.5, 1]) == "▁▅█"
    assert sparkline([3, 3]) == "▁▁"
    assert sparkline([1, math.nan, 2]) == "▁ █"
    assert sparkline([]) == ""


@given(st.lists(st.floats(-1e6, 1e6)))
def test_sparkline_has_one_character_per_value(values: list[float]) -> None:
    assert len(sparkline(values)) == len(values)


def test_reasons_are_those_of_first_reward_by_share() -> None:
    assert list(reason_shares(LOGS).items()) == [("incorrect", 0.5), ("correct", 0.25), ("no_answer", 0.25)]
    assert reason_shares({"reward": 1.0}) == {}
    assert group_shares(LOGS) == {"kept": 0.75, "zero_std": 0.25}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_bar_has_full_width_for_any_shares(weights: list[float]) -> None:
    total = sum(weights) or 1.0
    shares = {f"r{i}": weight / total for i, weight in enumerate(weights)}
    bar, legend = share_bar(shares, width=40).plain.split("\n")
    assert len(bar) == (40 if sum(weights) else 0)
    assert all(name in legend for name in shares)


def test_view_shows_values_curves_and_legends() -> None:
    view = LiveView()
    assert "waiting for the first step" in drawn(view)
    view.add(LOGS)
    view.add({**LOGS, "reward": 0.75, "eval_accuracy": 0.5})
    text = drawn(view)
    for part in ("reward", "0.750", "▁█", "validation accuracy", "50.0%", "tokens per second", "1,234"):
        assert part in text
    assert "█ incorrect 50%  ▓ correct 25%  ▒ no answer 25%" in text
    assert "█ kept 75%  ▓ zero std 25%" in text
    assert "skipped steps" not in text
    assert "scaled from their lowest to their highest value" in text


def test_colors_do_not_change_text() -> None:
    view = LiveView()
    view.add(LOGS)
    assert "\x1b[32m█" in drawn(view, color=True)
    assert "\x1b[" not in drawn(view)


@pytest.mark.parametrize("steps", [1, HISTORY, HISTORY + 5])
def test_curves_have_limited_length(steps: int) -> None:
    view = LiveView()
    for step in range(steps):
        view.add({"reward": step})
    assert max(map(len, drawn(view).split())) == min(steps, HISTORY) or steps == 1
