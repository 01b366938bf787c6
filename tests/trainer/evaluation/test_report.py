from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from tests.support.eval_results import eval_result
from trainer.evaluation.report import mean_accuracy, render, report_notes, score_table, write_report
from trainer.evaluation.scores import Scores, score

USED = {
    "flushes": 2,
    "executed": 4,
    "delayed": 1,
    "tool_errors": 1,
    "tool_seconds": 2.0,
    "hidden_seconds": 1.5,
}


@pytest.fixture
def scores() -> list[Scores]:
    reported = [eval_result("p", s, float(s < 3), **USED) for s in range(4)]
    unreported = [eval_result("p", s, 1.0) for s in range(2)]
    return [score("aime24", reported), score("<b>", unreported)]


class Texts(HTMLParser):
    """Parser that collects the page's text, elements and external resources."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())


def test_page_shows_all_scores_and_loads_nothing(scores: list[Scores]) -> None:
    page = Texts()
    page.feed(render(scores, {"model": "<script>m", "seed": 0, "url": None}))
    for text in ("aime24", "<b>", "75.0 %", "25.0 %", "50.0 %", "2.00", "Evaluation of <script>m"):
        assert any(text in piece for piece in page.text), text
    assert page.fetched == []
    assert "script" not in page.tags
    assert page.tags.count("svg") == 8
    assert page.tags.count("polyline") == 2


def test_report_files(tmp_path: Path, scores: list[Scores]) -> None:
    write_report(tmp_path, scores, {"model": "m"})
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["mean_accuracy"] == mean_accuracy(scores) == 0.875
    assert [s["benchmark"] for s in report["scores"]] == ["aime24", "<b>"]
    assert report["scores"][0]["pass_at"] == {"1": 0.75, "2": 1.0, "4": 1.0}
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_report_has_notes(tmp_path: Path, scores: list[Scores]) -> None:
    assert report_notes(scores, 0) == []
    long = score("olympiad", [eval_result("p", 0, 0.0, finish="too_long"), eval_result("q", 0, 0.0)])
    write_report(tmp_path, [long], {"model": "m"}, missing=1200)
    page = (tmp_path / "report.html").read_text()
    assert "olympiad: the prompts of 1 of 2 problems leave no room" in page
    assert "Not finished: 1,200 results are missing" in page
    assert json.loads((tmp_path / "report.json").read_text())["missing_attempts"] == 1200


@pytest.mark.parametrize(("right", "top"), [(0, "5 %"), (1, "5 %"), (4, "25 %"), (20, "100 %")])
def test_plot_range_fits_values(right: int, top: str) -> None:
    attempts = [eval_result(str(p), s, float(p < right)) for p in range(20) for s in range(4)]
    page = Texts()
    page.feed(render([score("b" * 20, attempts)], {"model": "m"}))
    assert top in page.text
    assert [text for text in page.text if text in ("1", "2", "4", "8", "32")][-3:] == ["1", "2", "4"]
    assert "b" * 13 + "…" in page.text


def test_table_fits_80_columns(scores: list[Scores]) -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(score_table(scores))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    [row] = [line for line in lines if "aime24" in line]
    assert row.split() == [
        "aime24", "1", "75.0", "±", "-", "4", "100.0", "100.0", "25.0", "2.00", "100", "50.0", "75.0"
    ]  # fmt: skip
    assert any(line.split() == ["mean", "87.5"] for line in lines)
    assert max(map(len, lines)) <= 80
