"""Files in sandboxes: inputs that code can only read, and the files and displays that it creates.

A `FileSession` is a session that can also be parked between requests.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from service.sandbox.base import Session, SessionLimits
from service.tools.base import ToolHost

SkipReason = Literal["symlink", "not_a_file", "too_large", "too_many", "too_deep", "unreadable", "name"]
"""Reason why an entry of the work directory is not returned:

* ``symlink``: links are never followed.
* ``not_a_file``: a FIFO, socket or device.
* ``too_large``, ``too_many``, ``too_deep``: a limit of the listing.
* ``unreadable``: the code has removed its own access.
* ``name``: the path is not printable UTF-8, or too long.
"""
DisplayType = Literal["image/png", "image/svg+xml", "text/html"]


@dataclass(frozen=True, slots=True)
class WorkFile:
    """A file that a flush created or changed."""

    path: str
    """Path below the work directory."""
    size: int
    """Size in bytes."""
    sha256: str


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """An entry of the work directory that is not returned. ``path`` is printable ASCII."""

    path: str
    reason: SkipReason


@dataclass(frozen=True, slots=True)
class Display:
    """A rendered figure or table. The content is data of the tenant: its HTML must not be trusted."""

    index: int
    type: DisplayType
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class FileChanges:
    """Files, displays and skipped entries of the flushes since the last listing."""

    files: tuple[WorkFile, ...] = ()
    displays: tuple[Display, ...] = ()
    skipped: tuple[SkippedFile, ...] = ()


class FileSession(Session, Protocol):
    """A session with files. After ``close`` it is over, as any session; ``park`` keeps it instead."""

    @property
    def is_alive(self) -> bool:
        """Whether the session has a container that is not known to be lost."""
        ...

    async def lease(self) -> None:
        """Lease a container now instead of at the first block.

        Raises:
            QueueTimeoutError: no container became free in time.
            SandboxError: no container could be started, or the session is closed.
        """
        ...

    async def configure(self, limits: SessionLimits, tools: ToolHost | None = None) -> None:
        """Change the limits of the following flushes, and the tools that their code can call.

        Raises:
            SandboxError: the container is lost.
        """
        ...

    async def put(self, name: str, size: int, content: AsyncIterator[bytes]) -> None:
        """Write an input, which code can read but not change. The container's memory limit grows by its size.

        Args:
            name: file name in the directory of the inputs.
            size: number of bytes in ``content``.
            content: chunks of at most a few megabytes.

        Raises:
            ValueError: the inputs would exceed their limit, or the name exists. The session is unchanged.
            SandboxError: the container is lost.
        """
        ...

    async def remove(self, name: str) -> None:
        """Remove an input. Raises as `put`."""
        ...

    async def changes(self) -> FileChanges:
        """Return the changes since the last call. No block may be pending.

        Raises:
            SandboxError: the container is lost.
        """
        ...

    def read(self, item: WorkFile | Display) -> AsyncGenerator[bytes, None]:
        """Yield the content of an item of the last `changes`.

        Raises:
            SandboxError: the container is lost, or the content is not the one that was listed.
        """
        ...

    async def park(self) -> None:
        """Drop the pending blocks and keep the container for a later request.

        Raises:
            SandboxError: the container is lost.
        """
        ...

    async def freeze(self) -> None:
        """Stop all processes of the parked container until its next use, if the machine supports that.

        Raises:
            SandboxError: the container is lost.
        """
        ...


@runtime_checkable
class FileSandbox(Protocol):
    """A sandbox whose sessions can have files."""

    def file_session(self, limits: SessionLimits) -> FileSession:
        """Return a session that leases its container at ``lease`` or at the first ``invoke``."""
        ...
