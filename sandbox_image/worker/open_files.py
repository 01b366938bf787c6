"""Open files of a checkpoint: their offsets, and whether it holds anything that can't be restored.

An open file belongs to the kernel and is shared by the copies of a forked process. A run that fails, or that
is repeated, has therefore moved the offsets of its checkpoint too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from dataclasses import dataclass

# Code may replace these functions in their modules.
_listdir, _fstat, _stat, _readlink, _lseek = os.listdir, os.fstat, os.stat, os.readlink, os.lseek
_open, _close, _dup2, _read, _fcntl = os.open, os.close, os.dup2, os.read, fcntl.fcntl

_DEVICES = {(1, minor) for minor in (3, 5, 7, 8, 9)}
"""Devices without state: null, zero, full, random, urandom."""
_SHARED_MAPPING = re.compile(rb" .w.s ")
"""In a line of /proc/self/maps. A path that matches does no harm; to rule it out takes four times as long."""
_DELETED = " (deleted)"
_KEPT_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK


@dataclass(frozen=True)
class _OpenFile:
    fd: int
    path: str
    offset: int
    flags: int
    device: int
    inode: int


class OpenFiles:
    """The open files of this process at the time of construction.

    Args:
        except_for: a descriptor to leave out.
    """

    def __init__(self, except_for: int) -> None:
        self.shared = False
        """Pipes, sockets, files without a name or writable shared memory exist, which can't be restored."""
        self._files: list[_OpenFile] = []
        for fd in map(int, _listdir("/proc/self/fd")):
            if fd > 2 and fd != except_for:
                with contextlib.suppress(OSError):  # the listing's own descriptor is closed
                    self._add(fd)
        self.shared = self.shared or _SHARED_MAPPING.search(_content("/proc/self/maps")) is not None

    def _add(self, fd: int) -> None:
        status = _fstat(fd)
        if stat.S_ISCHR(status.st_mode):
            self.shared |= (os.major(status.st_rdev), os.minor(status.st_rdev)) not in _DEVICES
            return
        path = _readlink(f"/proc/self/fd/{fd}")
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)) or path.endswith(_DELETED):
            self.shared = True
            return
        offset, flags = _lseek(fd, 0, os.SEEK_CUR), _fcntl(fd, fcntl.F_GETFL)
        self._files.append(_OpenFile(fd, path, offset, flags, status.st_dev, status.st_ino))

    def restore(self) -> None:
        """Restore all offsets. A file that was replaced, and whose path has its old content, is reopened."""
        for file in self._files:
            with contextlib.suppress(OSError):
                status = _stat(file.path)
                if (status.st_dev, status.st_ino) != (file.device, file.inode):
                    fd = _open(file.path, file.flags & _KEPT_FLAGS)
                    _dup2(
                        fd, file.fd, inheritable=bool(_fcntl(file.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC == 0)
                    )
                    _close(fd)
                _lseek(file.fd, file.offset, os.SEEK_SET)


def _content(path: str) -> bytes:
    fd = _open(path, os.O_RDONLY)
    try:
        parts = []
        while part := _read(fd, 1 << 20):
            parts.append(part)
        return b"".join(parts)
    finally:
        _close(fd)
