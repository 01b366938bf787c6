from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trainer.training.run_lock import DirectoryError, exclusive

HOLD = """
import sys, time
from pathlib import Path
from trainer.training.run_lock import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_kept_out_until_the_first_is_gone(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        try:
            with (
                pytest.raises(DirectoryError, match=r"another process is at work in .*/new/run"),
                exclusive(directory),
            ):
                pass
        finally:
            first.kill()
    with exclusive(directory), exclusive(tmp_path):
        pass


@pytest.mark.parametrize("inside", ["", "/run"])
def test_what_is_no_directory_is_told(tmp_path: Path, inside: str) -> None:
    file = tmp_path / "file"
    file.touch()
    with (
        pytest.raises(DirectoryError, match=r"file.* can't be written to .*name another"),
        exclusive(Path(f"{file}{inside}")),
    ):
        pass
