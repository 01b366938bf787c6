"""Put the writable directories back as they were: the file half of all-or-nothing.

Files belong to the code's uid and the supervisor has no right over them, so each step runs in a short-lived
fork under that uid. The copy lives in memory (a memfd), where code can't reach it.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from collections.abc import Iterator

from .processes import WorkerError, as_user

_SECONDS = 5.0


class Snapshot:
    """The content of the writable directories at one moment."""

    def __init__(self, directories: list[str], uid: int, max_bytes: int) -> None:
        self._directories = directories
        self._uid = uid
        self._max_bytes = max_bytes
        self._copy: int | None = None

    async def take(self) -> None:
        """Copy what is there.

        Raises:
            WorkerError: there is more than ``max_bytes``, or it can't be read.
        """
        if empty(self._directories):
            return
        self._copy = os.memfd_create("snapshot", os.MFD_CLOEXEC)
        if not await as_user(self._uid, self._save, seconds=_SECONDS):
            raise WorkerError("the work files can't be copied")

    async def restore(self) -> None:
        """Put everything back.

        Raises:
            WorkerError: something could not be removed or written.
        """
        if self._copy is None and empty(self._directories):
            return
        if not await as_user(self._uid, self._put_back, seconds=_SECONDS):
            raise WorkerError("the work files can't be put back")

    def drop(self) -> None:
        if self._copy is not None:
            os.close(self._copy)
            self._copy = None

    def _save(self) -> None:
        if self._copy is None:
            return
        room = self._max_bytes
        with os.fdopen(self._copy, "wb", closefd=False) as out, tarfile.open(fileobj=out, mode="w") as tar:
            for path in entries(self._directories):
                room -= os.lstat(path).st_size
                if room < 0:
                    raise WorkerError("too much to copy")
                with readable(path):
                    tar.add(path, recursive=False)

    def _put_back(self) -> None:
        kept = set()
        if self._copy is not None:
            os.lseek(self._copy, 0, os.SEEK_SET)
            with os.fdopen(self._copy, "rb", closefd=False) as copy, tarfile.open(fileobj=copy) as tar:
                members = tar.getmembers()
                kept = {"/" + member.name for member in members}
                remove_except(self._directories, kept)
                for member in members:
                    path = "/" + member.name
                    if os.path.lexists(path) and not same_kind(path, member):
                        discard(path)
                    elif member.isreg() and os.path.exists(path):
                        os.chmod(path, 0o600)  # written in place: whoever has it open sees the old content
                tar.extraction_filter = lambda member, _: member  # our own copy: nothing to filter
                tar.extractall("/")  # noqa: S202
        else:
            remove_except(self._directories, kept)


class readable:  # noqa: N801  reads as a phrase where it is used
    """Let the owner read ``path`` for a moment, whatever its mode."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._mode = stat.S_IMODE(os.lstat(path).st_mode)
        self._regular = stat.S_ISREG(os.lstat(path).st_mode)

    def __enter__(self) -> None:
        if self._regular and not self._mode & 0o400:
            os.chmod(self._path, self._mode | 0o400)

    def __exit__(self, *_: object) -> None:
        if self._regular and not self._mode & 0o400:
            os.chmod(self._path, self._mode)


def empty(directories: list[str]) -> bool:
    return not any(os.listdir(directory) for directory in directories)


def entries(directories: list[str]) -> Iterator[str]:
    """Every path below ``directories``, parents first; folders are opened up to their owner on the way."""
    for directory in directories:
        for parent, names, files in os.walk(directory):
            for name in names:
                path = os.path.join(parent, name)
                if not os.path.islink(path):
                    os.chmod(path, stat.S_IMODE(os.lstat(path).st_mode) | 0o700)
                yield path
            yield from (os.path.join(parent, name) for name in files)


def remove_except(directories: list[str], kept: set[str]) -> None:
    for path in list(entries(directories)):
        if path not in kept and os.path.lexists(path):
            discard(path)


def discard(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def same_kind(path: str, member: tarfile.TarInfo) -> bool:
    mode = os.lstat(path).st_mode
    return (stat.S_ISREG(mode) and member.isreg()) or (stat.S_ISDIR(mode) and member.isdir())
