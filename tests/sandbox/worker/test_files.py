from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sandbox_image.worker.files import Snapshot
from sandbox_image.worker.processes import WorkerError, reap


def reaping(work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work`` in a loop that collects dead children, as the supervisor's does."""

    async def run() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, lambda: reap([]))
        await work()

    asyncio.run(run())


def test_everything_comes_back_and_nothing_more(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("one")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "deep").write_bytes(b"\0\1")
    (tmp_path / "link").symlink_to("kept")
    (tmp_path / "changed-kind").write_text("a file")
    opened = (tmp_path / "kept").open()

    async def work() -> None:
        snapshot = Snapshot([str(tmp_path)], uid=0, max_bytes=1 << 20)
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
        assert opened.read() == "one"  # the same file, not another of its name


def test_modes_stay_as_they_are(tmp_path: Path) -> None:
    closed, secret = tmp_path / "closed", tmp_path / "closed" / "secret"
    closed.mkdir()
    secret.write_text("x")

    def modes() -> list[int]:
        return [path.lstat().st_mode & 0o777 for path in (closed, secret)]

    async def work() -> None:
        secret.chmod(0)
        closed.chmod(0o100)
        snapshot = Snapshot([str(tmp_path)], uid=0, max_bytes=1 << 20)
        await snapshot.take()
        assert modes() == [0o100, 0]
        closed.chmod(0o700)
        secret.chmod(0o600)
        await snapshot.restore()
        assert modes() == [0o100, 0]

    reaping(work)
    assert secret.read_text() == "x"


def test_an_empty_folder_is_emptied_again(tmp_path: Path) -> None:
    async def work() -> None:
        snapshot = Snapshot([str(tmp_path)], uid=0, max_bytes=10)
        await snapshot.take()
        (tmp_path / "new").write_text("x" * 100)
        os.mkfifo(tmp_path / "pipe")
        await snapshot.restore()

    reaping(work)
    assert list(tmp_path.iterdir()) == []


def test_too_much_is_refused(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(100))

    async def work() -> None:
        await Snapshot([str(tmp_path)], uid=0, max_bytes=99).take()

    with pytest.raises(WorkerError, match="can't be copied"):
        reaping(work)
