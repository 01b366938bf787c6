from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from tests.support.eval_results import eval_result
from trainer.data.problems import Problem
from trainer.evaluation.results import (
    RESULTS_FILE,
    ResultLog,
    ResultsError,
    read_problems,
    save_problems,
)

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


def test_setting_that_an_older_version_did_not_record_has_a_hint(tmp_path: Path) -> None:
    ResultLog(tmp_path, SETTINGS).add(eval_result("p", 0, 1.0))
    settings = {**SETTINGS, "engine_dtype": "bfloat16"}
    with pytest.raises(ResultsError) as caught:
        ResultLog(tmp_path, settings)
    message = str(caught.value)
    assert "engine_dtype is 'bfloat16'" in message
    assert "did not record it, which counts as 'auto'" in message
    assert "set engine_dtype to 'auto' to resume" in message
    assert f'add "engine_dtype": "bfloat16" to {tmp_path / "settings.json"}' in message
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    assert len(ResultLog(tmp_path, settings).results) == 1


def test_rows_of_earlier_starts_are_kept(tmp_path: Path) -> None:
    first, second = (Problem(f"x:{number}", f"{number}?", "1") for number in range(2))
    save_problems(tmp_path, {"b": [first, second]})
    save_problems(tmp_path, {"b": [first], "c": [first]})
    assert list(read_problems(tmp_path)) == [("b", "0"), ("b", "1"), ("c", "0")]
    assert read_problems(tmp_path)["b", "1"] == {"question": "1?", "answer": "1"}
    (tmp_path / "problems.jsonl").write_text("[]\n")
    with pytest.raises(ResultsError, match=r"cannot read .*problems\.jsonl"):
        read_problems(tmp_path)


def test_rejects_changed_setting_by_name(tmp_path: Path) -> None:
    ResultLog(tmp_path, SETTINGS).add(eval_result("p", 0, 1.0))
    with pytest.raises(ResultsError, match=r"temperature is 0\.5, but .* was started with 1\.0"):
        ResultLog(tmp_path, {**SETTINGS, "temperature": 0.5})
    (tmp_path / "settings.json").write_text("no")
    with pytest.raises(ResultsError, match="cannot read"):
        ResultLog(tmp_path, SETTINGS)
