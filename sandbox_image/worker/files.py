"""Snapshots of the writable directories, which undo the file changes of a failed flush.

The files belong to the uid of the code, and the supervisor has no access to them. Each step therefore runs in
a short-lived fork under that uid. The copy is kept in memory (a memfd) that code can't access.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile

from .processes import WorkerError, as_user

_TIMEOUT_S = 5.0


class FileSnapshot:
    """The content of ``directories`` at the time of ``take``."""

    def __init__(self, directories: list[str], uid: int, max_bytes: int) -> None:
        self._directories = directories
        self._uid = uid
        self._max_bytes = max_bytes
        self._copy: int | None = None

    async def take(self) -> None:
        """Copy all files.

        Raises:
            WorkerError: they hold more than ``max_bytes`` or can't be read.
        """
        if is_empty(self._directories):
            return
        self._copy = os.memfd_create("snapshot", os.MFD_CLOEXEC)
        if not await as_user(self._uid, self._save, seconds=_TIMEOUT_S):
            raise WorkerError("the work files can't be copied")

    async def restore(self) -> None:
        """Restore all files and remove new ones.

        Raises:
            WorkerError: a file could not be removed or written.
        """
        if self._copy is None and is_empty(self._directories):
            return
        if not await as_user(self._uid, self._restore, seconds=_TIMEOUT_S):
            raise WorkerError("the work files can't be restored")

    def drop(self) -> None:
        if self._copy is not None:
            os.close(self._copy)
            self._copy = None

    def _save(self) -> None:
        if self._copy is None:
            return
        room = self._max_bytes
        with os.fdopen(self._copy, "wb", closefd=False) as out, tarfile.open(fileobj=out, mode="w") as tar:
            modes = make_readable(self._directories)
            for path, mode in modes.items():
                room -= os.lstat(path).st_size
                if room < 0:
                    raise WorkerError("the files are too large to copy")
                add(tar, path, mode)
        for path, mode in reversed(modes.items()):
            if not os.path.islink(path):
                os.chmod(path, mode)

    def _restore(self) -> None:
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
                        remove(path)
                    elif member.isreg() and os.path.exists(path):
                        os.chmod(path, 0o600)  # written in place, so that open files show the old content too
                tar.extraction_filter = lambda member, _: member  # the copy is our own, so it needs no filter
                tar.extractall("/")  # noqa: S202
        else:
            remove_except(self._directories, kept)


def add(tar: tarfile.TarFile, path: str, mode: int) -> None:
    def with_mode(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mode = mode
        return member

    tar.add(path, recursive=False, filter=with_mode)


def modes(directories: list[str]) -> list[int]:
    """Return the type and the permissions of each directory."""
    return [os.stat(directory).st_mode for directory in directories]


def is_empty(directories: list[str]) -> bool:
    return not any(os.listdir(directory) for directory in directories)


def make_readable(directories: list[str]) -> dict[str, int]:
    """Return the mode of every path below ``directories``, parents first, and make all of them readable."""
    modes = {}

    def visit(path: str, needed: int) -> None:
        status = os.lstat(path)
        mode = modes[path] = stat.S_IMODE(status.st_mode)
        if mode & needed != needed and (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
            os.chmod(path, mode | needed)

    for directory in directories:
        for parent, names, files in os.walk(directory):
            for name in names:  # before the walk enters them
                visit(os.path.join(parent, name), 0o700)
            for name in files:
                visit(os.path.join(parent, name), 0o400)
    return modes


def remove_except(directories: list[str], kept: set[str]) -> None:
    for path in make_readable(directories):
        if path not in kept and os.path.lexists(path):
            remove(path)


def remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def same_kind(path: str, member: tarfile.TarInfo) -> bool:
    mode = os.lstat(path).st_mode
    return (stat.S_ISREG(mode) and member.isreg()) or (stat.S_ISDIR(mode) and member.isdir())
