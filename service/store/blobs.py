"""Contents of files: in a directory, or in any store that fsspec supports, such as S3.

Names of blobs are random and chosen by the server. Nothing in a name or path comes from a client.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

CHUNK_BYTES: Final = 1 << 20
_NAME: Final = re.compile(r"[0-9a-f]{32}")
_PARTIAL: Final = ".part"
T = TypeVar("T")


class BlobError(Exception):
    """The store of file contents failed or has lost a content."""


class BlobWriter(Protocol):
    """Writer of one blob."""

    async def write(self, data: bytes) -> None:
        """Append ``data``.

        Raises:
            BlobError: the store failed.
        """
        ...


class BlobStore(Protocol):
    """A store of file contents by name. Every method raises BlobError if the store fails."""

    def write(self, name: str) -> contextlib.AbstractAsyncContextManager[BlobWriter]:
        """Open a new blob. It exists once the context ends; an exception inside discards it."""
        ...

    def read(self, name: str) -> AsyncGenerator[bytes, None]:
        """Yield the content in chunks of at most ``CHUNK_BYTES``."""
        ...

    async def delete(self, name: str) -> None:
        """Delete a blob. No effect if it does not exist."""
        ...

    async def names(self, *, older_than_s: float) -> list[str]:
        """Return the names of all blobs that were written at least ``older_than_s`` seconds ago."""
        ...


def open_blobs(url: str) -> BlobStore:
    """Return the store for ``url``: the path of a directory, or an fsspec URL such as ``s3://bucket/prefix``.

    Raises:
        ValueError: the URL's scheme is unknown, or its library is not installed.
    """
    if "://" not in url:
        return DirectoryBlobs(Path(url))
    if url.startswith("file://"):
        return DirectoryBlobs(Path(url.removeprefix("file://")))
    return FsspecBlobs(url)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a blob")
    return name


class DirectoryBlobs:
    """Blobs as files of a directory, readable only by the server's user. It is created at the first write."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def _path(self, name: str) -> Path:
        return self._root / _checked(name)[:2] / name

    @asynccontextmanager
    async def write(self, name: str) -> AsyncGenerator[BlobWriter, None]:
        path = self._path(name)
        unfinished = path.with_name(name + _PARTIAL)
        descriptor = await self._call(_create, unfinished)
        try:
            try:
                yield _FileWriter(self, descriptor)
                await self._call(os.fsync, descriptor)
            finally:
                os.close(descriptor)
            await self._call(unfinished.rename, path)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise

    async def read(self, name: str) -> AsyncGenerator[bytes, None]:
        descriptor = await self._call(os.open, self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            while data := await self._call(os.read, descriptor, CHUNK_BYTES):
                yield data
        finally:
            os.close(descriptor)

    async def delete(self, name: str) -> None:
        await self._call(partial(self._path(name).unlink, missing_ok=True))

    async def names(self, *, older_than_s: float) -> list[str]:
        return await asyncio.to_thread(self._names, time.time() - older_than_s)

    async def _call(self, work: Callable[..., T], *args: Any) -> T:
        try:
            return await asyncio.to_thread(work, *args)
        except OSError as error:
            raise BlobError(f"the directory {self._root}: {error.strerror}") from error

    def _names(self, before: float) -> list[str]:
        found = []
        for path in self._root.glob("??/*"):
            with contextlib.suppress(OSError):  # deleted in the meantime
                if path.stat().st_mtime > before:
                    continue
                if path.name.endswith(_PARTIAL):  # its writer was killed
                    path.unlink(missing_ok=True)
                elif _NAME.fullmatch(path.name):
                    found.append(path.name)
        return found


def _create(path: Path) -> int:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


class _FileWriter:
    def __init__(self, store: DirectoryBlobs, descriptor: int) -> None:
        self._store = store
        self._descriptor = descriptor

    async def write(self, data: bytes) -> None:
        await self._store._call(self._write, data)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]


class FsspecBlobs:
    """Blobs in a store that fsspec supports. Its blocking calls run in threads.

    Raises:
        ValueError: the URL's scheme is unknown, or its library is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ModuleNotFoundError:
            raise ValueError(f"files_url {url!r} needs fsspec: pip install 'ih-grpo[s3]'") from None
        try:
            # Cached listings would hide what other servers write and delete.
            self._fs, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ValueError(f"files_url {url!r} can't be used: {error}") from None

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{_checked(name)}"

    @asynccontextmanager
    async def write(self, name: str) -> AsyncGenerator[BlobWriter, None]:
        # autocommit=False: an upload in parts becomes visible at the commit and can be discarded before.
        file = await self._call(self._fs.open, self._path(name), "wb", autocommit=False)
        try:
            yield _FsspecWriter(self, file)
            await self._call(file.close)
            await self._call(file.commit)
        except BaseException:
            with contextlib.suppress(BlobError):
                await self._call(file.discard)
            with contextlib.suppress(BlobError):
                await self.delete(name)  # some stores have no partial files
            raise

    async def read(self, name: str) -> AsyncGenerator[bytes, None]:
        file = await self._call(self._fs.open, self._path(name), "rb")
        try:
            while data := await self._call(file.read, CHUNK_BYTES):
                yield data
        finally:
            await self._call(file.close)

    async def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            await self._call(self._fs.rm_file, self._path(name), missing=FileNotFoundError)

    async def names(self, *, older_than_s: float) -> list[str]:
        try:
            entries = await self._call(self._fs.ls, self._root, missing=FileNotFoundError, detail=True)
        except FileNotFoundError:
            return []
        before = time.time() - older_than_s
        names = ((str(entry["name"]).rpartition("/")[2], _modified(entry)) for entry in entries)
        return [name for name, modified in names if _NAME.fullmatch(name) and modified <= before]

    async def _call(self, work: Any, *args: Any, missing: type[Exception] = BlobError, **options: Any) -> Any:
        """Call ``work`` in a thread. A missing file raises ``missing``, any other failure BlobError."""
        try:
            return await asyncio.to_thread(work, *args, **options)
        except FileNotFoundError as error:
            raise missing(f"a content is missing from the file store: {error}") from error
        except Exception as error:  # each backend has its own errors
            raise BlobError(f"the file store failed: {error}") from error


class _FsspecWriter:
    def __init__(self, store: FsspecBlobs, file: Any) -> None:
        self._store = store
        self._file = file

    async def write(self, data: bytes) -> None:
        await self._store._call(self._file.write, data)


def _modified(entry: dict[str, Any]) -> float:
    value = entry.get("LastModified") or entry.get("created") or entry.get("mtime") or 0.0
    return float(value.timestamp()) if hasattr(value, "timestamp") else float(value)


async def whole(chunks: AsyncIterator[bytes]) -> bytes:
    """Return the concatenation of ``chunks``."""
    return b"".join([chunk async for chunk in chunks])
