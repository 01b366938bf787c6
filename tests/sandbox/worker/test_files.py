from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sandbox_image.worker.files import FileSnapshot
from sandbox_image.worker.processes import WorkerError, reap


def reaping(work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work`` in an event loop that collects dead children, like that of the supervisor."""

    async def run() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, lambda: reap([]))
        await work()

    asyncio.run(run())


def test_restores_every_file_and_removes_new_ones(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("one")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "deep").write_bytes(b"\0\1")
    (tmp_path / "link").symlink_to("kept")
    (tmp_path / "changed-kind").write_text("a file")
    opened = (tmp_path / "kept").open()

    async def work() -> None:
        snapshot = FileSnapshot([str(tmp_path)], uid=0, max_bytes=1 << 20)
        await snapshot.take()
        (tmp_path / "kept").write_text("changed")
        (tmp_path / "folder" / "deep").unlink()
        (tmp_path / "link").unlink()
        (tmp_path / "changed-kind").unlink()
        (tmp_path / "changed-kind").mkdir()
        (tmp_path / "new" / "er").mkdir(parents=True)
        await snapshot.restore()
        snapshot.drop()

    reaping(work)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "changed-kind",
        "deep",
        "folder",
        "kept",
        "link",
    ]
    assert (tmp_path / "folder" / "deep").read_bytes() == b"\0\1"
    assert (tmp_path / "link").readlink() == Path("kept")
    assert (tmp_path / "changed-kind").read_text() == "a file"
    with opened:
        assert opened.read() == "one"  # the same file, not a new one of the same name


def test_keeps_file_modes(tmp_path: Path) -> None:
    closed, secret = tmp_path / "closed", tmp_path / "closed" / "secret"
    closed.mkdir()
    secret.write_text("x")

    def modes() -> list[int]:
        return [path.lstat().st_mode & 0o777 for path in (closed, secret)]

    async def work() -> None:
        secret.chmod(0)
        closed.chmod(0o100)
        snapshot = FileSnapshot([str(tmp_path)], uid=0, max_bytes=1 << 20)
        await snapshot.take()
        assert modes() == [0o100, 0]
        closed.chmod(0o700)
        secret.chmod(0o600)
        await snapshot.restore()
        assert modes() == [0o100, 0]

    reaping(work)
    assert secret.read_text() == "x"


def test_empties_a_folder_that_was_empty(tmp_path: Path) -> None:
    async def work() -> None:
        snapshot = FileSnapshot([str(tmp_path)], uid=0, max_bytes=10)
        await snapshot.take()
        (tmp_path / "new").write_text("x" * 100)
        os.mkfifo(tmp_path / "pipe")
        await snapshot.restore()

    reaping(work)
    assert list(tmp_path.iterdir()) == []


def test_rejects_more_than_the_maximum_size(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(100))

    async def work() -> None:
        await FileSnapshot([str(tmp_path)], uid=0, max_bytes=99).take()

    with pytest.raises(WorkerError, match="can't be copied"):
        reaping(work)
