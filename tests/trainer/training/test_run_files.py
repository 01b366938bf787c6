from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.deferral.episode import Outcome
from service.episode.events import ExecutedTool, InvokedBlock
from trainer.data.problems import DataError, Problem
from trainer.rewards.registry import RewardPart
from trainer.training.episodes import Sample
from trainer.training.run_files import (
    DirectoryError,
    ScoredSample,
    read_complete_lines,
    read_rollout,
    run_lock,
    write_rollout,
)

TOOL = ExecutedTool(
    id="s0_0",
    blocks=(InvokedBlock("x = 1", 3, 1001.0), InvokedBlock("print(x)", 9, 1002.0)),
    delayed=1,
    output="1",
    status="ok",
    started_at=1001.0,
    finished_at=1002.25,
    flushed_at=1002.125,
    wall_ms=375.0,
    waited_ms=125.0,
    runs=((1001.0, 1001.25), (1002.0, 1002.125)),
)
TURN = "A\n```python\nx = 1\n```\nB\n```python\nprint(x)\n```<tool_call>"
TEXT = f"{TURN}\nCode execution result: 1\n</tool_call>\nso \\boxed{{1}}"


def scored(reward: float | None = 1.0) -> ScoredSample:
    sample = Sample((1,), (2, 3), (1, 0), (-0.5, 0.0), TEXT, Outcome.ANSWER, "1", (TOOL,), 4.0, 7, 1000.0)
    return ScoredSample(Problem(id="p1", question="1?", answer="1"), sample, reward, "correct", 0.5)


def test_rollout_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "rollout.parquet"
    write_rollout(path, 3, [scored(), scored(None)])
    [first, second] = read_rollout(path)
    assert (first.problem_id, first.question, first.gold, first.text) == ("p1", "1?", "1", TEXT)
    assert (first.outcome, first.reward, first.advantage) == (Outcome.ANSWER, 1.0, 0.5)
    assert first.tools == (TOOL,)
    assert (first.began_at, first.seconds) == (1000.0, 4.0)
    assert second.reward is None


def test_rewards_are_read_where_the_file_has_them(tmp_path: Path) -> None:
    path = tmp_path / "rollout.parquet"
    parts = {"math": RewardPart(1.0, "correct"), "brief": RewardPart(None, "no_verdict")}
    write_rollout(path, 0, [replace(scored(), parts=parts)])
    [record] = read_rollout(path)
    assert record.rewards == {
        "math": {"value": 1.0, "reason": "correct"},
        "brief": {"value": None, "reason": "no_verdict"},
    }
    pq.write_table(pq.read_table(path).drop_columns(["rewards"]), path)  # as older versions wrote it
    assert read_rollout(path) == [replace(record, rewards={})]


def test_rejects_other_file_by_name(tmp_path: Path) -> None:
    missing, text, other = tmp_path / "none.parquet", tmp_path / "text.parquet", tmp_path / "other.parquet"
    text.write_text("no parquet")
    pq.write_table(pa.table({"prompt": ["1?"]}), other)
    for path in (missing, text, other):
        with pytest.raises(DataError, match=path.name):
            read_rollout(path)


HOLD = """
import sys, time
from pathlib import Path
from trainer.training.run_files import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_run_lock_excludes_second_process(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        try:
            with (
                pytest.raises(DirectoryError, match=r"another process is using .*/new/run"),
                run_lock(directory),
            ):
                pass
        finally:
            first.kill()
    with run_lock(directory), run_lock(tmp_path):
        pass


@pytest.mark.parametrize("inside", ["", "/run"])
def test_run_lock_rejects_file(tmp_path: Path, inside: str) -> None:
    file = tmp_path / "file"
    file.touch()
    with (
        pytest.raises(DirectoryError, match=r"file.* is not writable .*choose another"),
        run_lock(Path(f"{file}{inside}")),
    ):
        pass


def test_unfinished_line_is_not_read_and_removed_on_request(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    assert read_complete_lines(path) == []
    content = "one\u2028line\ntwo\nthr".encode()
    path.write_bytes(content)
    lines = ["one\u2028line".encode(), b"two"]
    assert read_complete_lines(path) == lines
    assert path.read_bytes() == content
    assert read_complete_lines(path, truncate=True) == lines
    with path.open("ab") as file:
        file.write(b"three\n")
    assert read_complete_lines(path) == [*lines, b"three"]
