from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.support.eval_results import eval_result
from trainer.evaluation.results import RESULTS_FILE, ResultLog, ResultsError

SETTINGS = {"model": "m", "temperature": 1.0}


def test_added_results_are_read_back(tmp_path: Path) -> None:
    log = ResultLog(tmp_path / "new", SETTINGS)
    results = [eval_result("p", 0, 1.0), eval_result("p", 1, 0.0, text="a\nb\u2028c")]
    for item in results:
        log.add(item)
    again = ResultLog(tmp_path / "new", SETTINGS)
    assert list(again.results.values()) == results
    assert ("b", "p", 1) in again.results


def test_partial_line_is_dropped(tmp_path: Path) -> None:
    ResultLog(tmp_path, SETTINGS).add(eval_result("p", 0, 1.0))
    with (tmp_path / RESULTS_FILE).open("a") as file:
        file.write('{"benchmark": "b", "prob')
    log = ResultLog(tmp_path, SETTINGS)
    assert set(log.results) == {("b", "p", 0)}
    log.add(eval_result("p", 1, 0.0))
    assert len(ResultLog(tmp_path, SETTINGS).results) == 2


def test_names_invalid_line(tmp_path: Path) -> None:
    ResultLog(tmp_path, SETTINGS).add(eval_result("p", 0, 1.0))
    with (tmp_path / RESULTS_FILE).open("a") as file:
        file.write("{}\n")
    with pytest.raises(ResultsError, match=r"attempts\.jsonl, line 2 is not a result"):
        ResultLog(tmp_path, SETTINGS)


def test_log_without_results_saves_no_settings(tmp_path: Path) -> None:
    ResultLog(tmp_path, SETTINGS)
    assert not list(tmp_path.iterdir())
    ResultLog(tmp_path, {**SETTINGS, "model": "the right one"}).add(eval_result("p", 0, 1.0))


def test_full_disk_is_reported_and_keeps_file_valid(tmp_path: Path) -> None:
    log = ResultLog(tmp_path, SETTINGS)
    log.add(eval_result("p", 0, 1.0))
    path = tmp_path / RESULTS_FILE
    whole = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # A limit on the file's size has the same effect as a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, hard))
        with pytest.raises(ResultsError, match=r"cannot write .*attempts\.jsonl .*same command to resume"):
            log.add(eval_result("p", 1, 0.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == whole
    assert len(log.results) == 1
    log.add(eval_result("p", 1, 0.0))
    assert len(ResultLog(tmp_path, SETTINGS).results) == 2


def test_rejects_changed_setting_by_name(tmp_path: Path) -> None:
    ResultLog(tmp_path, SETTINGS).add(eval_result("p", 0, 1.0))
    with pytest.raises(ResultsError, match=r"temperature is 0\.5, but .* was started with 1\.0"):
        ResultLog(tmp_path, {**SETTINGS, "temperature": 0.5})
    (tmp_path / "settings.json").write_text("no")
    with pytest.raises(ResultsError, match="cannot read"):
        ResultLog(tmp_path, SETTINGS)
