"""Client of the runner: a ``Sandbox`` for the API and the trainer, which need no access to Docker."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TypeVar

import httpx
from pydantic import SecretStr

from service.sandbox.base import ExecutionResult, SandboxError, SessionLimits
from service.sandbox.files import Display, FileChanges, WorkFile
from service.sandbox.runner import protocol
from service.sandbox.runner.connection import ConnectionLostError, RunnerConnection
from service.sandbox.runner.protocol import Address

_READY_TIMEOUT_S = 2.0
R = TypeVar("R", bound=protocol.RunnerReply)
T = TypeVar("T")
_NOTHING = ExecutionResult("", "", "ok", wall_seconds=0.0, waited_seconds=0.0)


@dataclass(frozen=True, slots=True)
class RunnerClientSettings:
    """Address and secret of the runner, and timeouts in seconds."""

    address: str
    """``unix:/path/to.sock`` or ``host:port``."""
    token: SecretStr
    connect_timeout_s: float = 10.0
    """Time to retry while the runner is unreachable, for example while it restarts."""
    start_timeout_s: float | None = None
    """Time that ``start`` waits for the runner to be ready; None for ``connect_timeout_s``."""
    invoke_timeout_s: float = 90.0
    """Time that a block may wait for a container: more than the queues of runner and pool take together."""
    flush_margin_s: float = 10.0
    """Time after the run limit within which the reply to a flush must arrive."""
    close_timeout_s: float = 10.0
    files_timeout_s: float = 60.0
    """Time for a request about files, without the transfer of an input."""
    input_timeout_s: float = 600.0
    """Time for the transfer of one input."""


class RunnerClient:
    """A ``Sandbox`` that delegates to a runner. Sessions connect at ``prepare`` or at their first block."""

    def __init__(self, settings: RunnerClientSettings) -> None:
        self._settings = settings
        self._address = Address.parse(settings.address)
        self._http: httpx.AsyncClient | None = None
        self._connected: set[RunnerSession] = set()

    async def start(self) -> None:
        """Wait for the runner to be ready.

        Raises:
            SandboxError: it was not ready within ``start_timeout_s``.
        """
        problem: str | None = "no answer"
        timeout_s = self._settings.start_timeout_s or self._settings.connect_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                while (problem := await self._problem()) is not None:  # noqa: ASYNC110  (another process, no event)
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise SandboxError(f"the runner at {self._address} is not ready: {problem}") from None

    def session(self, limits: SessionLimits) -> RunnerSession:
        """Return a session that leases its container at the first ``invoke``."""
        return RunnerSession(self._address, limits, self._settings, self._connected)

    def file_session(self, limits: SessionLimits) -> RunnerFileSession:
        """Return a session with files."""
        return RunnerFileSession(self._address, limits, self._settings, self._connected)

    async def ready(self) -> bool:
        """Return whether the runner has containers. Answers within two seconds and never raises."""
        return await self._problem() is None

    async def stop(self) -> None:
        """Close the open sessions."""
        await asyncio.gather(*(session.close() for session in list(self._connected)))
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def _problem(self) -> str | None:
        """Return the reason why the runner is not ready, or None if it is ready."""
        if self._http is None:
            uds = None if self._address.path is None else str(self._address.path)
            self._http = httpx.AsyncClient(
                base_url=f"http://{self._address.authority}",
                transport=httpx.AsyncHTTPTransport(uds=uds),
                headers={"Authorization": f"Bearer {self._settings.token.get_secret_value()}"},
                trust_env=False,
            )
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                answer = await self._http.get("/ready")
        except (httpx.HTTPError, TimeoutError) as error:
            return str(error) or type(error).__name__
        return None if answer.status_code == 200 else f"status {answer.status_code} {answer.text}"


class RunnerSession:
    """A session that lives in the runner.

    A broken connection loses the namespace. The next flush reports this once, as ``sandbox_error``. Blocks
    before that flush are dropped, because they may depend on lost variables. The block after it reconnects.
    """

    def __init__(
        self,
        address: Address,
        limits: SessionLimits,
        settings: RunnerClientSettings,
        connected: set[RunnerSession],
    ) -> None:
        self._address = address
        self._limits = limits
        self._settings = settings
        self._connected = connected
        """The client's sessions that may have a container. The client closes them when it stops."""
        self._run_limit_s = limits.run_limit_s
        self._connection: RunnerConnection | None = None
        self._lost: str | None = None
        self._file_options: protocol.FileOptions | None = None
        self._leased = False
        """The session has a container, so further blocks need not wait for their replies."""
        self._closed = False

    async def prepare(self) -> None:
        """Connect and open the session, so that the runner expects blocks. See ``Session.prepare``."""
        if self._closed or self._connection is not None or self._lost is not None:
            return
        with contextlib.suppress(SandboxError):  # the first block retries and reports the failure
            await self._connect()

    async def invoke(self, code: str) -> None:
        """Add a pending block. The first one waits for a container.

        Raises:
            QueueTimeoutError: no container became free in time.
            SandboxError: the runner is unreachable or rejects the block. Nothing ran.
        """
        if self._closed:
            raise SandboxError("the session is closed")
        if self._lost is not None:
            return
        try:
            request = protocol.invoke_request(code)
            connection = self._connection or await self._connect()
            if self._leased:
                await self._note_cancellation(
                    connection.send_nowait(request, timeout_s=self._settings.invoke_timeout_s)
                )
            else:
                await self._request(
                    connection, request, protocol.InvokedReply, self._settings.invoke_timeout_s
                )
                self._leased = True
        except ConnectionLostError as error:
            self._lost = str(error)
        except protocol.MessageError as error:
            raise SandboxError(str(error)) from None

    async def flush(self) -> ExecutionResult:
        """Run the pending blocks. See ``Session.flush``. ``waited_seconds`` is measured by the client."""
        began = time.monotonic()
        connection = self._connection
        if connection is None and self._lost is None:
            return _NOTHING
        try:
            if connection is None or self._lost is not None:
                raise ConnectionLostError(self._lost or "the session is closed")
            timeout_s = self._run_limit_s + self._settings.flush_margin_s
            result = (
                await self._request(connection, protocol.FlushRequest(), protocol.FlushedReply, timeout_s)
            ).result
            self._leased &= result.status != "sandbox_error"  # after an error the next block leases a new one
        except SandboxError as error:
            self._leased = False
            if isinstance(error, ConnectionLostError):
                self._connection, self._lost = None, None
            result = ExecutionResult("", str(error), "sandbox_error", wall_seconds=0.0, waited_seconds=0.0)
        return replace(result, waited_seconds=time.monotonic() - began)

    async def close(self) -> None:
        """Kill running code and release the container. Never raises; may be called twice."""
        self._closed = True
        self._connected.discard(self)
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close(timeout_s=self._settings.close_timeout_s)

    async def _connect(self) -> RunnerConnection:
        connection, granted = await RunnerConnection.open(
            self._address,
            self._settings.token.get_secret_value(),
            self._limits,
            timeout_s=self._settings.connect_timeout_s,
            files=self._file_options,
        )
        if self._closed:  # by another task in the meantime
            connection.drop()
            raise SandboxError("the session is closed")
        self._connection = connection
        self._connected.add(self)
        self._run_limit_s = granted.run_limit_s
        return connection

    async def _request(
        self,
        connection: RunnerConnection,
        request: protocol.RunnerRequest,
        expected: type[R],
        timeout_s: float,
    ) -> R:
        return await self._note_cancellation(connection.request(request, expected, timeout_s=timeout_s))

    async def _note_cancellation(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except asyncio.CancelledError:
            self._lost = "an earlier call was cancelled, which ended its session"
            raise


class RunnerFileSession(RunnerSession):
    """A session with files that lives in the runner. The open connection keeps it between requests."""

    def __init__(
        self,
        address: Address,
        limits: SessionLimits,
        settings: RunnerClientSettings,
        connected: set[RunnerSession],
    ) -> None:
        super().__init__(address, limits, settings, connected)
        self._file_options = protocol.FileOptions(memory_mb=limits.memory_mb)

    @property
    def is_alive(self) -> bool:
        connection = self._connection
        return self._leased and self._lost is None and connection is not None and connection.is_open

    async def lease(self) -> None:
        if self._closed:
            raise SandboxError("the session is closed")
        if self._lost is not None or (self._connection is not None and not self._connection.is_open):
            self._connection, self._lost = None, None
        connection = self._connection or await self._connect()
        await self._request(
            connection, protocol.LeaseRequest(), protocol.DoneReply, self._settings.invoke_timeout_s
        )
        self._leased = True

    async def configure(self, limits: SessionLimits) -> None:
        self._limits = replace(limits, memory_mb=self._limits.memory_mb)
        self._run_limit_s = limits.run_limit_s
        if self.is_alive:
            await self._ask(
                protocol.ConfigureRequest(
                    run_limit_s=limits.run_limit_s, eager=limits.eager, figures=limits.figures
                )
            )

    async def put(self, name: str, size: int, content: AsyncIterator[bytes]) -> None:
        request = protocol.PutRequest(name=name, size=size)
        work = self._alive().put(request, content, timeout_s=self._settings.input_timeout_s)
        try:
            reply = await self._note_cancellation(work)
        except ConnectionLostError as error:
            self._lost = str(error)
            raise
        if reply.error is not None:
            raise ValueError(reply.error)

    async def remove(self, name: str) -> None:
        await self._ask(protocol.RemoveRequest(name=name))

    async def changes(self) -> FileChanges:
        return (await self._asked(protocol.ChangesRequest(), protocol.ChangesReply)).changes

    async def read(self, item: WorkFile | Display) -> AsyncGenerator[bytes, None]:
        digest = hashlib.sha256()
        request = protocol.ReadRequest(item=item)
        chunks = self._alive().read(request, timeout_s=self._settings.input_timeout_s)
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    digest.update(chunk)
                    yield chunk
        except ConnectionLostError as error:
            self._lost = str(error)
            raise
        if digest.hexdigest() != item.sha256:
            raise SandboxError("the runner returned another content than it had listed")

    async def park(self) -> None:
        if self.is_alive:
            await self._ask(protocol.ParkRequest(freeze=False))

    async def freeze(self) -> None:
        await self._ask(protocol.ParkRequest(freeze=True))

    async def resume(self) -> None:
        await self._ask(protocol.ResumeRequest())

    def _alive(self) -> RunnerConnection:
        if not self.is_alive or self._connection is None:
            raise SandboxError(self._lost or "the session has no container")
        return self._connection

    async def _ask(self, request: protocol.FileRequest) -> None:
        reply = await self._asked(request, protocol.DoneReply)
        if reply.error is not None:
            raise ValueError(reply.error)

    async def _asked(self, request: protocol.FileRequest, expected: type[R]) -> R:
        try:
            return await self._request(self._alive(), request, expected, self._settings.files_timeout_s)
        except SandboxError as error:
            self._leased = False
            if isinstance(error, ConnectionLostError):
                self._lost = str(error)
            raise
