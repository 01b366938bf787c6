from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.common.machine import available_memory, physical_cores

GIB = 2**30


def test_available_memory_respects_the_cgroup_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/sys/fs/cgroup/memory.max": f"{3 * GIB}\n",
        "/sys/fs/cgroup/memory.current": f"{GIB}\n",
        "/proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {64 * 2**20} kB\n",
    }
    monkeypatch.setattr(Path, "is_file", lambda path: str(path) in files)
    monkeypatch.setattr(Path, "read_text", lambda path: files[str(path)])
    assert available_memory() == 2 * GIB


@pytest.mark.parametrize(
    ("siblings", "cores"), [({0: "0,4", 4: "0,4", 1: "1"}, 2), ({0: "0", 1: "1"}, 2), ({0: None, 1: None}, 2)]
)
def test_hardware_threads_of_a_core_count_once(
    siblings: dict[int, str | None], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> str:
        text = siblings[int(path.parts[-3].removeprefix("cpu"))]
        if text is None:
            raise FileNotFoundError
        return f"{text}\n"

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(siblings))
    monkeypatch.setattr(Path, "read_text", read)
    assert physical_cores() == cores
