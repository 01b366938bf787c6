"""Sessions of a pool with files, see `service.sandbox.files`."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, TypeVar

from service.sandbox.base import SandboxError, SessionLimits
from service.sandbox.files import Display, FileChanges, SkippedFile, WorkFile
from service.sandbox.pool import Pool
from service.sandbox.session import PooledSession
from service.sandbox.settings import PoolSettings
from service.sandbox.worker_protocol import Data, Done, FileListing, Reply, SandboxWorker
from service.tools.base import ToolHost

T = TypeVar("T")
_READ_BYTES: Final = 512 << 10
"""Bytes of a file in one frame; a frame may have a megabyte."""
_ANSWER_WITHIN_S: Final = 30.0
_INPUT_WITHIN_S: Final = 600.0
_LIFETIME_MARGIN_S: Final = 60.0
"""A container that ends within this time is not used for another request."""
_MB: Final = 1 << 20


class PooledFileSession(PooledSession):
    """A `FileSession` on its own worker."""

    def __init__(self, pool: Pool, limits: SessionLimits, settings: PoolSettings) -> None:
        super().__init__(pool, settings.clip(limits), settings.grace_s)
        self._settings = settings
        self._inputs: dict[str, int] = {}
        """Size of each input."""

    @property
    def is_alive(self) -> bool:
        worker = self._worker
        if worker is None or self._failure is not None or worker.has_ended:
            return False
        return time.monotonic() < worker.created_at + self._settings.max_lifetime_s - _LIFETIME_MARGIN_S

    def _drop_worker(self, reason: str | None) -> None:
        super()._drop_worker(reason)
        self._inputs = {}

    async def prepare(self) -> None:
        if self._worker is None:
            await super().prepare()

    async def lease(self) -> None:
        async with self._lock:
            if self._closed:
                raise SandboxError("the session is closed")
            if self.is_alive:
                return
            self._drop_worker(None)
            self._failure = None
            with self._failure_loses_worker():
                worker = await self._lease()
                if self._limits.memory_mb is not None:
                    await self._resize(worker, 0)

    async def configure(self, limits: SessionLimits, tools: ToolHost | None = None) -> None:
        async with self._lock:
            # The memory of the container stays as it was created.
            self._limits = replace(self._settings.clip(limits), memory_mb=self._limits.memory_mb)
            self._tools = tools
            if self._worker is not None:
                await self._exchange(self._open)

    async def put(self, name: str, size: int, content: AsyncIterator[bytes]) -> None:
        async with self._lock:
            if name in self._inputs:
                raise ValueError(f"the container already has an input {name!r}")
            total = sum(self._inputs.values()) + size
            if total > self._settings.inputs_mb * _MB:
                raise ValueError(f"the inputs of a container may have {self._settings.inputs_mb} MB together")
            self._inputs[name] = size
            try:
                await self._exchange(
                    lambda worker: self._put(worker, name, size, content, total), _INPUT_WITHIN_S
                )
            except ValueError:
                del self._inputs[name]
                raise

    async def _put(
        self, worker: SandboxWorker, name: str, size: int, content: AsyncIterator[bytes], total: int
    ) -> None:
        await self._resize(worker, total)
        async with self._sending:
            await worker.send({"op": "put", "name": name, "size": size})
            left = size
            async for chunk in _readable(name, content):
                left -= len(chunk)
                if left < 0:
                    break
                async with asyncio.timeout(_ANSWER_WITHIN_S):  # of each part: a large input takes long
                    await worker.send_bytes(chunk)
        if left:  # the worker waits for bytes that will never come
            raise SandboxError(f"the content of the input {name!r} does not have {size} bytes")
        await self._done(worker)

    async def remove(self, name: str) -> None:
        async with self._lock:
            await self._exchange(lambda worker: self._ask_done(worker, {"op": "remove", "name": name}))
            self._inputs.pop(name, None)

    async def changes(self) -> FileChanges:
        async with self._lock:
            listing = await self._exchange(lambda worker: self._ask(worker, {"op": "files"}, FileListing))
        return FileChanges(
            files=tuple(WorkFile(file.path, file.size, file.sha256) for file in listing.files),
            displays=tuple(
                Display(index, item.type, item.size, item.sha256)
                for index, item in enumerate(listing.displays)
            ),
            skipped=tuple(SkippedFile(entry.path, entry.reason) for entry in listing.skipped),
        )

    async def read(self, item: WorkFile | Display) -> AsyncGenerator[bytes, None]:
        where = {"path": item.path} if isinstance(item, WorkFile) else {"display": item.index}
        digest, offset = hashlib.sha256(), 0
        while offset < item.size:
            request = {"op": "read", "offset": offset, "size": min(_READ_BYTES, item.size - offset), **where}
            async with self._lock:
                reply = await self._exchange(lambda worker, asked=request: self._ask(worker, asked, Data))  # type: ignore[misc]
            chunk = _decoded(reply)
            if not chunk or len(chunk) > item.size - offset:
                raise await self._lost("the worker returned another size than it had listed")
            offset += len(chunk)
            digest.update(chunk)
            yield chunk
        if digest.hexdigest() != item.sha256:
            raise await self._lost("the worker returned another content than it had listed")

    async def park(self) -> None:
        async with self._lock:
            self._withdraw()
            if self._pending_blocks and self._failure is None and self._worker is not None:
                await self._exchange(lambda worker: self._ask_done(worker, {"op": "discard"}))
                if self._channel is not None:
                    self._channel.end_flush()
            self._pending_blocks, self._pending_bytes = 0, 0

    async def freeze(self) -> None:
        async with self._lock:
            await self._exchange(self._freeze)

    async def _freeze(self, worker: SandboxWorker) -> None:
        worker.freeze()

    async def _resize(self, worker: SandboxWorker, input_bytes: int) -> None:
        """Set the memory limit of the container, to which its inputs are added."""
        self._reusable = False
        await worker.resize((self._limits.memory_mb or self._settings.memory_mb) + -(-input_bytes // _MB))

    async def _ask(self, worker: SandboxWorker, request: dict[str, Any], expected: type[T]) -> T:
        await worker.send(request)
        reply: Reply = await (self._channel or worker).receive()
        if not isinstance(reply, expected):
            raise SandboxError(f"the worker replied {reply.op!r} to {request['op']!r}")
        return reply

    async def _ask_done(self, worker: SandboxWorker, request: dict[str, Any]) -> None:
        await worker.send(request)
        await self._done(worker)

    async def _done(self, worker: SandboxWorker) -> None:
        reply = await (self._channel or worker).receive()
        if not isinstance(reply, Done):
            raise SandboxError(f"the worker sent {reply.op!r} instead of its reply")
        if reply.error is not None:
            raise ValueError(reply.error)

    async def _exchange(
        self, work: Callable[[SandboxWorker], Awaitable[T]], within_s: float = _ANSWER_WITHIN_S
    ) -> T:
        """Run ``work`` with the worker. A failure in it, or a cancellation, loses the worker."""
        if self._worker is None or self._failure is not None:
            raise SandboxError(self._failure or "the session has no container")
        with self._failure_loses_worker():
            try:
                async with asyncio.timeout(within_s + self._answer_within_s):
                    if await self._settled(self._settling) is not None:
                        raise SandboxError(
                            "the sandbox image has no sessions with files; rebuild it: ih-grpo sandbox build"
                        )
                    return await work(self._worker)
            except TimeoutError:
                raise SandboxError("the worker did not answer in time") from None

    @contextmanager
    def _failure_loses_worker(self) -> Generator[None]:
        try:
            yield
        except SandboxError:
            self._drop_worker("sandbox_error")
            raise
        except asyncio.CancelledError:
            self._drop_worker("cancelled")
            raise

    async def _lost(self, reason: str) -> SandboxError:
        async with self._lock:
            self._drop_worker("sandbox_error")
        return SandboxError(reason)


async def _readable(name: str, content: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Pass ``content`` on. Raise SandboxError if it can't be read."""
    try:
        async for chunk in content:
            yield chunk
    except Exception as error:
        raise SandboxError(f"the content of the input {name!r} can't be read: {error}") from error


def _decoded(reply: Data) -> bytes:
    try:
        return base64.b64decode(reply.data or "", validate=True)
    except binascii.Error:
        return b""
