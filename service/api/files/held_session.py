"""The session of a request that holds a container which lives across requests."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import structlog

from service.api.files.inputs import InputFile
from service.sandbox.base import (
    ExecutionResult,
    FlushFiles,
    OnOutput,
    OutputFile,
    SandboxError,
    SessionLimits,
)
from service.sandbox.files import Display, FileChanges, WorkFile
from service.sandbox.worker_program import WORK
from service.store.blobs import BlobError, whole
from service.store.containers import ContainerFile
from service.store.files import FileTooLargeError
from service.tools.base import ToolHost

if TYPE_CHECKING:
    from service.api.files.containers import Containers, LiveContainer

_log = structlog.get_logger(__name__)
_MAX_FLUSH_BYTES: Final = 64 << 20
"""Bytes of files that one flush may return. Files beyond are reported as skipped."""
_MAX_TABLE_BYTES: Final = 64 << 10
_ENDINGS: Final = {"image/png": "png", "image/svg+xml": "svg"}


class HeldSession:
    """A `Session` on a container that outlives it. Its results contain the files of each flush."""

    def __init__(
        self,
        live: LiveContainer,
        new_inputs: Sequence[InputFile],
        containers: Containers,
        response_id: str,
        *,
        figures: Literal["png", "svg"] = "png",
    ) -> None:
        self._live = live
        self._new_inputs = list(new_inputs)
        self._containers = containers
        self._response_id = response_id
        self._format: Literal["png", "svg"] = figures
        self._limits = SessionLimits(figures=figures)
        self._tools: ToolHost | None = None
        self._ready: asyncio.Task[None] | None = None
        self._figures = 0
        self._is_closing = False
        self._is_interruptible = False

    def configure(self, limits: SessionLimits, tools: ToolHost | None) -> None:
        """Set the limits of the flushes, and the tools that their code can call."""
        self._tools = tools
        self._limits = replace(limits, figures=self._format, memory_mb=None)

    async def prepare(self) -> None:
        """Resume the container, or lease one if the request has files; see ``Session.prepare``."""
        if self._live.is_stored or self._new_inputs:
            self._start()
        else:
            await self._live.session.prepare()

    def _start(self) -> asyncio.Task[None]:
        if self._ready is None:
            self._ready = asyncio.create_task(self.make_ready())
        return self._ready

    async def make_ready(self) -> None:
        """Lease or resume the container, and copy the inputs that it does not have yet.

        Raises:
            SandboxError: no container is available, or a file could not be copied.
        """
        live, session = self._live, self._live.session
        inputs, self._new_inputs = self._new_inputs, []
        live.is_frozen = False
        if not session.is_alive:
            await self._interruptibly(session.lease)
            await self._containers.register(live)
            inputs, live.inputs = [*live.inputs, *inputs], []
        await session.configure(self._limits, self._tools)
        for item in inputs:
            await self.add_input(item)

    async def add_input(self, item: InputFile) -> ContainerFile:
        """Copy an input into the container.

        Raises:
            SandboxError: the container is lost, or the file does not fit or can't be read.
        """
        live, file = self._live, item.file
        try:
            content = self._containers.files.content(file)
            await self._interruptibly(partial(live.session.put, item.name, file.bytes, content))
        except (ValueError, BlobError) as error:
            raise SandboxError(f"the file {item.name!r} could not be copied: {error}") from error
        live.inputs.append(item)
        await self._containers.update(live, inputs=[one.as_stored() for one in live.inputs])
        return await self._containers.store.add_input(
            live.record, item.path, file.bytes, file.sha256, file.blob
        )

    async def invoke(self, code: str) -> None:
        await asyncio.shield(self._start())
        await self._live.session.invoke(code)

    async def flush(self, on_output: OnOutput | None = None) -> ExecutionResult:
        result = await self._live.session.flush(on_output)
        if result.container is None:
            return result
        live = self._live
        self._containers.count_seconds(result.wall_seconds)
        if self._response_id:
            await self._containers.update(live, last_response_id=self._response_id)
        result = replace(result, container=live.record.id)
        if result.status == "sandbox_error":
            self._ready = None  # the next block leases a new container and copies the inputs again
        if result.status != "ok":
            return result
        try:
            return replace(result, files=await self._collect(await live.session.changes()))
        except SandboxError as error:
            # The script has succeeded, but its container is lost: the next flush starts with a new one.
            _log.warning("files_not_collected", container=live.record.id, error=str(error))
            return result

    async def suspend(self) -> None:
        await self._live.session.suspend()

    async def resume(self) -> None:
        await self._live.session.resume()

    def continue_as(self, response_id: str) -> None:
        """Attribute the flushes from now on to another response, which continues the one before."""
        self._response_id = response_id

    async def close(self) -> None:
        """Wait until the container is consistent. `Containers.park` decides what becomes of it."""
        self._is_closing = True
        if self._ready is not None:
            if self._is_interruptible:
                self._ready.cancel()
            await asyncio.gather(self._ready, return_exceptions=True)

    async def _interruptibly(self, work: Callable[[], Awaitable[None]]) -> None:
        """Await ``work()``, which `close` may cancel. A statement of the database must not be cancelled."""
        if self._is_closing:
            raise SandboxError("the request has ended")
        self._is_interruptible = True
        try:
            await work()
        finally:
            self._is_interruptible = False

    async def _collect(self, changes: FileChanges) -> FlushFiles:
        room = _MAX_FLUSH_BYTES
        files: list[OutputFile] = []
        tables: list[str] = []
        skipped: list[tuple[str, str]] = [(entry.path, entry.reason) for entry in changes.skipped]
        items: list[WorkFile | Display] = [*changes.displays, *changes.files]
        for item in items:
            name = item.path if isinstance(item, WorkFile) else item.type
            if item.size > room:
                skipped.append((name, "too_large"))
            elif isinstance(item, Display) and item.type == "text/html":
                if item.size <= _MAX_TABLE_BYTES:
                    tables.append((await whole(self._live.session.read(item))).decode("utf-8", "replace"))
            else:
                room -= item.size
                try:
                    files.append(await self._save(item))
                except FileTooLargeError:
                    skipped.append((name, "quota"))
                except (BlobError, ValueError) as error:
                    _log.warning("file_not_stored", error=str(error))
                    skipped.append((name, "not_stored"))
        return FlushFiles(tuple(files), tuple(tables), tuple(skipped))

    async def _save(self, item: WorkFile | Display) -> OutputFile:
        live = self._live
        if isinstance(item, WorkFile):
            path = f"{WORK}/{item.path}"
            media_type = mimetypes.guess_type(item.path)[0] or "application/octet-stream"
        else:
            self._figures += 1
            path = f"/figures/{self._response_id[-8:]}-{self._figures}.{_ENDINGS[item.type]}"
            media_type = item.type
        async with aclosing(live.session.read(item)) as content:
            stored = await self._containers.store.save_file(live.record, path, content)
        return OutputFile(stored.id, live.record.id, path, stored.bytes, stored.sha256, media_type)
