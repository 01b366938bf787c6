from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.support.run_dirs import write_run
from trainer.runs.compare import Curve, RunComparison, compare, print_comparison, render_html
from trainer.runs.records import RunsError, TrainingRun, read_run


def run(path: Path, rewards: list[float], **fields: object) -> TrainingRun:
    path.mkdir(parents=True)
    write_run(path, [{"step": i + 1, "reward": value} for i, value in enumerate(rewards)], **fields)
    return read_run(path)


@pytest.fixture
def two(tmp_path: Path) -> RunComparison:
    return compare(
        [
            run(tmp_path / "first", [0.25, 0.5, 0.75]),
            run(tmp_path / "second", [0.25, 0.375], method="grpo-delayed"),
        ]
    )


def printed(comparison: RunComparison, *, color: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=80, force_terminal=color, color_system="standard" if color else None
    )
    print_comparison(comparison, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_numbers_of_curve() -> None:
    curve = Curve("run", [(step, float(step)) for step in range(1, 21)])
    assert (curve.last, curve.tail_mean, curve.best) == (20, 19.5, 20)
    empty = Curve("run", [])
    assert (empty.last, empty.tail_mean, empty.best) == (None, None, None)


def test_terminal_has_settings_charts_and_values(two: RunComparison) -> None:
    text = printed(two)
    assert re.search(r"method +│ ih-grpo +│ grpo-delayed", text)
    assert "(reward)" in text
    assert "(step)" in text
    assert re.search(r"a +first +3 +0\.75 +0\.75 +0\.75", text)
    assert re.search(r"b +second +2 +0\.375", text)
    assert "\x1b" not in text
    assert "0.7750" in text or "0.775" in text  # the axis


def test_colors_on_terminal(two: RunComparison) -> None:
    text = printed(two, color=True)
    assert "\x1b[34m━━" in text
    assert "\x1b[33m━━" in text


def test_chosen_metrics_and_unknown_ones(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    write_run(tmp_path / "r", [{"step": 1, "reward": 0.5, "groups/zero_std": 0.25}])
    runs = [read_run(tmp_path / "r")]
    assert list(compare(runs).curves) == ["reward"]
    assert list(compare(runs, ["groups/zero_std"]).curves) == ["groups/zero_std"]
    with pytest.raises(RunsError, match=r"unknown metric rewerd\. Did you mean reward\? .* groups/zero_std"):
        compare(runs, ["rewerd"])


def test_run_without_steps(tmp_path: Path) -> None:
    with pytest.raises(RunsError, match="has no metrics yet"):
        compare([run(tmp_path / "new", [])])


class Page(HTMLParser):
    """Collects tags, and URLs that a browser would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_page_is_self_contained_and_complete(two: RunComparison) -> None:
    html = render_html(two)
    page = Page(html)
    assert page.loaded == []
    assert "script" not in page.tags
    assert "url(" not in html
    assert page.tags.count("polyline") == 2
    assert page.tags.count("circle") == 5
    text = " ".join(page.text)
    assert "second, step 2: 0.375" in text
    assert "grpo-delayed" in text


def test_page_escapes_names(tmp_path: Path) -> None:
    html = render_html(compare([run(tmp_path / "<img src=x>", [0.5])]))
    assert "<img" not in html
    assert "&lt;img src=x&gt;" in html


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 1000), st.floats(-1e9, 1e9)), max_size=20), min_size=1, max_size=8
    )
)
def test_any_curves_are_drawn_inside_the_chart(curves: list[list[tuple[int, float]]]) -> None:
    named = [Curve(f"r{i}", sorted(points)) for i, points in enumerate(curves)]
    comparison = RunComparison([curve.name for curve in named], {"reward": named}, {})
    assert "r0" in printed(comparison)
    found = re.findall(r'cx="([^"]+)" cy="([^"]+)"', render_html(comparison))
    assert len(found) == sum(map(len, curves))
    assert all(0 <= float(x) <= 520 and 0 <= float(y) <= 200 for x, y in found)
