from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox_image.worker.open_files import OpenFiles


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_text("one two")
    descriptor = os.open(tmp_path / "file", os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def test_restores_offsets(fd: int) -> None:
    os.lseek(fd, 4, os.SEEK_SET)
    files = OpenFiles(except_for=-1)
    assert os.read(fd, 3) == b"two"
    files.restore()
    assert os.read(fd, 3) == b"two"


def test_reopens_a_file_that_was_replaced(fd: int, tmp_path: Path) -> None:
    os.set_inheritable(fd, True)
    os.lseek(fd, 4, os.SEEK_SET)
    files = OpenFiles(except_for=-1)
    (tmp_path / "file").rename(tmp_path / "other")
    (tmp_path / "file").write_text("one 222")  # as the copy of the files does it
    files.restore()
    assert os.read(fd, 3) == b"222"
    assert os.get_inheritable(fd)
    assert os.fstat(fd).st_ino == (tmp_path / "file").stat().st_ino


def test_a_descriptor_that_was_closed_is_skipped(fd: int) -> None:
    files = OpenFiles(except_for=-1)
    files._files = [file for file in files._files if file.fd == fd]
    copy = os.dup(fd)
    os.close(fd)
    files.restore()
    os.dup2(copy, fd)
    os.close(copy)


SHARING = """
import ctypes, mmap, os, socket, sys, tempfile
sys.path.insert(0, {root!r})
from sandbox_image.worker.open_files import OpenFiles
kept = None
{setup}
print(OpenFiles(except_for={but}).shared)
"""


@pytest.mark.parametrize(
    ("setup", "shared"),
    [
        ("", False),
        (
            "kept = open(os.devnull), open('/dev/urandom'), open('/etc/passwd'), os.open('/', os.O_RDONLY)",
            False,
        ),
        ("kept = os.pipe()", True),
        ("kept = socket.socketpair()", True),
        ("kept = os.memfd_create('m')", True),
        ("kept = tempfile.TemporaryFile()", True),
        ("kept = mmap.mmap(-1, 4096)", True),
        ("kept = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)", False),
    ],
)
def test_shared_state(setup: str, shared: bool) -> None:
    code = SHARING.format(root=str(Path(__file__).parents[3]), setup=setup, but=-1)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{shared}\n", done.stderr


def test_a_descriptor_can_be_left_out() -> None:
    code = SHARING.format(
        root=str(Path(__file__).parents[3]), setup="kept = os.memfd_create('m')", but="kept"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr
