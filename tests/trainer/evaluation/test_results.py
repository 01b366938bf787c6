from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.support.attempts import attempt
from trainer.evaluation.results import ATTEMPTS, AttemptLog, AttemptsError

SETTINGS = {"model": "m", "temperature": 1.0}


def test_what_was_added_is_there_again(tmp_path: Path) -> None:
    log = AttemptLog(tmp_path / "new", SETTINGS)
    made = [attempt("p", 0, 1.0), attempt("p", 1, 0.0, text="a\nb\u2028c")]
    for item in made:
        log.add(item)
    again = AttemptLog(tmp_path / "new", SETTINGS)
    assert list(again.attempts.values()) == made
    assert ("b", "p", 1) in again.attempts


def test_half_a_line_is_dropped_and_the_file_stays_sound(tmp_path: Path) -> None:
    AttemptLog(tmp_path, SETTINGS).add(attempt("p", 0, 1.0))
    with (tmp_path / ATTEMPTS).open("a") as file:
        file.write('{"benchmark": "b", "prob')
    log = AttemptLog(tmp_path, SETTINGS)
    assert set(log.attempts) == {("b", "p", 0)}
    log.add(attempt("p", 1, 0.0))
    assert len(AttemptLog(tmp_path, SETTINGS).attempts) == 2


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    AttemptLog(tmp_path, SETTINGS).add(attempt("p", 0, 1.0))
    with (tmp_path / ATTEMPTS).open("a") as file:
        file.write("{}\n")
    with pytest.raises(AttemptsError, match=r"attempts\.jsonl, line 2 is not an attempt"):
        AttemptLog(tmp_path, SETTINGS)


def test_a_log_without_attempts_binds_nobody(tmp_path: Path) -> None:
    AttemptLog(tmp_path, SETTINGS)
    assert not list(tmp_path.iterdir())
    AttemptLog(tmp_path, {**SETTINGS, "model": "the right one"}).add(attempt("p", 0, 1.0))


def test_a_full_disk_is_told_and_leaves_the_file_sound(tmp_path: Path) -> None:
    log = AttemptLog(tmp_path, SETTINGS)
    log.add(attempt("p", 0, 1.0))
    path = tmp_path / ATTEMPTS
    whole = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # A file that may grow by 10 bytes more is a disk that has as many left.
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, hard))
        with pytest.raises(AttemptsError, match=r"attempts\.jsonl can't be written .*same command goes on"):
            log.add(attempt("p", 1, 0.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == whole
    assert len(log.attempts) == 1
    log.add(attempt("p", 1, 0.0))
    assert len(AttemptLog(tmp_path, SETTINGS).attempts) == 2


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    AttemptLog(tmp_path, SETTINGS).add(attempt("p", 0, 1.0))
    with pytest.raises(AttemptsError, match=r"temperature is 0\.5, but .* was begun with 1\.0"):
        AttemptLog(tmp_path, {**SETTINGS, "temperature": 0.5})
    (tmp_path / "settings.json").write_text("no")
    with pytest.raises(AttemptsError, match="can't be read"):
        AttemptLog(tmp_path, SETTINGS)
