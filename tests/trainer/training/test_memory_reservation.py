from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trainer.training import memory_reservation
from trainer.training.memory_reservation import reserve_memory

HOLDER = """
import sys
from pathlib import Path
from trainer.training import memory_reservation
memory_reservation.reservations_dir = lambda: Path(sys.argv[1])
held = memory_reservation.reserve_memory(100, lambda budget: budget // 2)
print(held.size, flush=True)
sys.stdin.read()
"""


def half(budget: int) -> int:
    return budget // 2


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory_reservation, "reservations_dir", lambda: tmp_path / "reservations")
    return tmp_path / "reservations"


def test_reservations_of_other_processes_count_until_they_end(folder: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "50\n"
        beside = reserve_memory(100, half)
        beside.release()
        assert (beside.size, beside.others, beside.budget) == (25, 50, 50)
        holder.kill()
    alone = reserve_memory(100, half)
    assert (alone.size, alone.others, alone.budget) == (50, 0, 100)
    assert len(list(folder.glob("*.json"))) == 1
    alone.release()


@pytest.mark.parametrize(("available", "budget"), [(100, 50), (50, 50), (30, 30), (120, 70)])
def test_memory_in_use_by_another_run_counts_once(available: int, budget: int) -> None:
    first = reserve_memory(100, half)
    second = reserve_memory(available, half)
    assert second.budget == budget
    first.release()
    second.release()


def test_plans_alone_without_a_writable_folder(folder: Path) -> None:
    folder.write_text("a file")
    reservation = reserve_memory(100, half)
    assert (reservation.size, reservation.others) == (50, 0)
    reservation.release()


def test_uses_no_folder_of_another_user(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder.symlink_to(elsewhere)
    reservation = reserve_memory(100, half)
    assert reservation.size == 50
    assert list(elsewhere.iterdir()) == []
    reservation.release()
