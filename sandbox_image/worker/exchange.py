"""Files in and out of the sandbox: inputs that code can only read, and the files that it wrote.

Code owns the work directory and may put anything there while it runs. Everything is read without following
links, one directory at a time, and only once no process of code is running.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import stat
from dataclasses import dataclass, field
from typing import Any

from .processes import as_user

LISTED_FILES = 64
"""Highest number of files in one listing."""
_LISTED_SKIPS = 16
_MAX_PATH_BYTES = 512
_MAX_DEPTH = 16
_MAX_ENTRIES = 10_000
_TIMEOUT_S = 10.0
_CHUNK_BYTES = 1 << 18
_PDF_TIMEOUT_S = 20.0
_PDF_TEXT_BYTES = 8 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Inputs:
    """The inputs of a sandbox: files in one directory that code can read but not change."""

    def __init__(self, directory: str, uid: int) -> None:
        self._directory = directory
        """Empty if the sandbox takes no inputs."""
        self._uid = uid
        self._extracted: set[str] = set()
        """PDF inputs beside which their text was written."""

    async def receive(self, reader: asyncio.StreamReader, name: str, size: int) -> str | None:
        """Write the next ``size`` bytes of the channel to a new file.

        Returns:
            The error; None if the file was written. The bytes are read from the channel in any case.
        """
        error, fd, path = None, -1, os.path.join(self._directory, name)
        try:
            if not self._directory or os.path.basename(name) != name or name in ("", ".", ".."):
                raise OSError("invalid name")
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o444)
            os.fchmod(fd, 0o444)
        except OSError as problem:
            error = problem.strerror or str(problem)
        left = size
        try:
            while left:
                data = await reader.read(min(left, _CHUNK_BYTES))
                if not data:
                    raise asyncio.IncompleteReadError(b"", left)
                left -= len(data)
                try:
                    while data and error is None:
                        data = data[os.write(fd, data) :]
                except OSError as problem:
                    error = problem.strerror or str(problem)
        finally:
            if fd >= 0:
                os.close(fd)
                if error is not None or left:
                    with contextlib.suppress(OSError):
                        os.unlink(path)
        return error

    async def extract_text(self, name: str) -> None:
        """Write the text of an input beside it, as ``NAME.txt``, if it is a PDF.

        PDF is parsed with the uid of the code.
        """
        if not name.lower().endswith(".pdf"):
            return
        path = os.path.join(self._directory, name)
        out = os.memfd_create("text", os.MFD_CLOEXEC)
        try:
            await as_user(self._uid, lambda: _write_text(path, out), seconds=_PDF_TIMEOUT_S)
            text = _content(out) or b"[no text could be extracted]\n"
            with contextlib.suppress(OSError):
                _write_new(path + ".txt", text)
                self._extracted.add(name)
        finally:
            os.close(out)

    def remove(self, name: str) -> str | None:
        """Remove an input, and its text. Return the error, or None."""
        try:
            if not self._directory or os.path.basename(name) != name:
                raise OSError("invalid name")
            os.unlink(os.path.join(self._directory, name))
            if name in self._extracted:
                self._extracted.remove(name)
                os.unlink(os.path.join(self._directory, name + ".txt"))
        except OSError as problem:
            return problem.strerror or str(problem)
        return None

    def clear(self) -> bool:
        """Remove all inputs. Return whether none is left."""
        if not self._directory:
            return True
        self._extracted.clear()
        return not any(self.remove(name) for name in os.listdir(self._directory))


def _write_new(path: str, data: bytes) -> None:
    with open(path, "xb") as file:
        os.fchmod(file.fileno(), 0o444)
        file.write(data)


def _write_text(path: str, out: int) -> None:
    from pypdf import PdfReader

    left = _PDF_TEXT_BYTES
    for page in PdfReader(path).pages:
        data = (page.extract_text() + "\n\n").encode("utf-8", "backslashreplace")[:left]
        left -= len(data)
        while data:
            data = data[os.write(out, data) :]
        if not left:
            return


@dataclass
class WorkFiles:
    """The files of the work directory as they were last listed."""

    root: str
    uid: int
    max_bytes: int
    """Bytes to read for one listing. Files beyond are reported as skipped."""
    _known: dict[str, list[Any]] = field(default_factory=dict)
    """Identity, SHA-256 and size of each listed file, by its path."""
    _skipped: set[tuple[str, str]] = field(default_factory=set)
    _copy: tuple[str, int] | None = None
    """The file that is being read: its path, and a descriptor of a copy."""

    async def changes(self) -> dict[str, Any] | None:
        """Return the files that were created or changed since the last call, and the entries that are not
        files or exceed a limit. None if the directory can't be read."""
        out = os.memfd_create("listing", os.MFD_CLOEXEC)
        try:
            if not await as_user(self.uid, lambda: self._scan(out), seconds=_TIMEOUT_S):
                return None
            found = json.loads(_content(out))
        finally:
            os.close(out)
        changed = []
        for path, (identity, digest, size) in found["files"].items():
            before = self._known.get(path)
            if before is None or before[1] != digest:
                changed.append({"path": path, "size": size, "sha256": digest})
            self._known[path] = [identity, digest, size]
        for path in set(self._known) - set(found["seen"]):
            del self._known[path]
        skipped = {(path, reason) for path, reason in found["skipped"]}
        new = sorted(skipped - self._skipped)[:_LISTED_SKIPS]
        self._skipped = skipped
        return {"files": changed, "skipped": [{"path": path, "reason": reason} for path, reason in new]}

    def _scan(self, out: int) -> None:
        scan = _Scan(self._known, self.max_bytes)
        root = os.open(self.root, _DIRECTORY)
        scan.directory(root, "", 0)
        data = json.dumps({"files": scan.files, "seen": scan.seen, "skipped": scan.skipped}).encode()
        while data:
            data = data[os.write(out, data) :]

    async def read(self, path: str, offset: int, size: int) -> bytes | None:
        """Return a part of a listed file; None if it can't be read."""
        if path not in self._known:
            return None
        if self._copy is None or self._copy[0] != path:
            self.close()
            copy = os.memfd_create("file", os.MFD_CLOEXEC)
            self._copy = (path, copy)
            if not await as_user(self.uid, lambda: self._copy_to(copy, path), seconds=_TIMEOUT_S):
                self.close()
                return None
        return os.pread(self._copy[1], size, offset)

    def _copy_to(self, out: int, path: str) -> None:
        *folders, name = path.split("/")
        here = os.open(self.root, _DIRECTORY)
        for folder in folders:
            here = os.open(folder, _DIRECTORY, dir_fd=here)
        fd = os.open(name, _FILE, dir_fd=here)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError
        left = self.max_bytes
        while left > 0 and (data := os.read(fd, min(left, _CHUNK_BYTES))):
            left -= len(data)
            while data:
                data = data[os.write(out, data) :]

    def close(self) -> None:
        """Drop the copy of the file that was read last."""
        if self._copy is not None:
            os.close(self._copy[1])
            self._copy = None


class _Scan:
    """One walk through the work directory, in a fork with the uid of the code."""

    def __init__(self, known: dict[str, list[Any]], max_bytes: int) -> None:
        self.files: dict[str, list[Any]] = {}
        """New files and those whose identity has changed."""
        self.seen: list[str] = []
        self.skipped: list[tuple[str, str]] = []
        self._known = known
        self._bytes_left = max_bytes
        self._entries_left = _MAX_ENTRIES

    def directory(self, fd: int, prefix: str, depth: int) -> None:
        try:
            names = sorted(os.listdir(fd))
        except OSError:
            self._skip(prefix, "unreadable")
            return
        for name in names:
            self._entries_left -= 1
            if self._entries_left < 0:
                self._skip(prefix, "too_many")
                return
            if name.startswith(".") or name == "__pycache__":
                continue  # caches and settings of libraries
            self._entry(fd, name, prefix, depth)

    def _entry(self, parent: int, name: str, prefix: str, depth: int) -> None:
        path = prefix + name
        if not _is_plain(path):
            self._skip(path, "name")
            return
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except OSError:
            return
        if stat.S_ISDIR(status.st_mode):
            if depth >= _MAX_DEPTH:
                self._skip(path, "too_deep")
                return
            try:
                fd = os.open(name, _DIRECTORY, dir_fd=parent)
            except OSError:
                self._skip(path, "unreadable")
                return
            try:
                self.directory(fd, path + "/", depth + 1)
            finally:
                os.close(fd)
        elif stat.S_ISLNK(status.st_mode):
            self._skip(path, "symlink")
        elif stat.S_ISREG(status.st_mode):
            self._file(parent, name, path)
        else:
            self._skip(path, "not_a_file")

    def _file(self, parent: int, name: str, path: str) -> None:
        try:
            fd = os.open(name, _FILE, dir_fd=parent)
        except OSError:
            self._skip(path, "unreadable")
            return
        try:
            status = os.fstat(fd)
            identity = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            self.seen.append(path)
            if (before := self._known.get(path)) is not None and before[0] == identity:
                return
            if len(self.files) >= LISTED_FILES:
                self._skip(path, "too_many")
            elif status.st_size > self._bytes_left:
                self._skip(path, "too_large")
            else:
                digest = hashlib.sha256()
                size = 0
                while data := os.read(fd, _CHUNK_BYTES):
                    size += len(data)
                    digest.update(data)
                self._bytes_left -= size
                self.files[path] = [identity, digest.hexdigest(), size]
        finally:
            os.close(fd)

    def _skip(self, path: str, reason: str) -> None:
        if len(self.skipped) < 1000:
            shown = path.encode("utf-8", "surrogateescape").decode("ascii", "backslashreplace")
            shown = "".join(char if char.isprintable() else "?" for char in shown)
            self.skipped.append((shown[:200], reason))


def _is_plain(path: str) -> bool:
    """Return whether a path is printable UTF-8 of bounded length."""
    try:
        return path.isprintable() and len(path.encode()) <= _MAX_PATH_BYTES
    except UnicodeEncodeError:
        return False


def _content(fd: int) -> bytes:
    parts, offset = [], 0
    while part := os.pread(fd, 1 << 20, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)
