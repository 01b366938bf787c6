"""Client of one or several runners: a ``Sandbox`` for the API and the trainer, without access to Docker.

Each session goes to the least loaded runner that answers (``service.sandbox.runner.hosts``). A runner that
fails costs each of its sessions one ``sandbox_error``. The next block opens a session on another runner.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pydantic import SecretStr

from service.sandbox.base import (
    CANCELLED,
    ExecutionResult,
    OnOutput,
    QueueTimeoutError,
    SandboxError,
    SessionLimits,
)
from service.sandbox.files import Display, FileChanges, WorkFile
from service.sandbox.runner import protocol
from service.sandbox.runner.balancer import RunnerBalancer
from service.sandbox.runner.connection import ConnectionLostError, Endpoint, RunnerConnection
from service.sandbox.runner.hosts import RunnerHost, RunnerStatus
from service.sandbox.runner.protocol import Address
from service.sandbox.runner.tls import client_context
from service.tools.base import ToolHost

R = TypeVar("R", bound=protocol.RunnerReply)
T = TypeVar("T")
_NOTHING = ExecutionResult("", "", "ok", wall_seconds=0.0, waited_seconds=0.0)


@dataclass(frozen=True, slots=True)
class RunnerClientSettings:
    """Addresses and secret of the runners, TLS files, and timeouts in seconds."""

    addresses: tuple[str, ...]
    """``unix:/path/to.sock``, ``host:port`` or ``wss://host:port`` (TLS) of each runner."""
    token: SecretStr
    """The secret that all runners share."""
    ca_file: Path | None = None
    """Certificate authorities of the runners. If given, all TCP addresses use TLS."""
    certificate_file: Path | None = None
    """This client's certificate, if the runners require one."""
    key_file: Path | None = None
    """Its private key; None if it is in the same file."""
    connect_timeout_s: float = 30.0
    """Time to retry while no runner is reachable, for example while it restarts."""
    start_timeout_s: float | None = None
    """Time that ``start`` waits for a runner to be ready; None for ``connect_timeout_s``."""
    invoke_timeout_s: float = 60.0
    """Time after the runner's queue timeout within which the reply to a first block must arrive: more than
    the queue of the runner's pool takes."""
    flush_margin_s: float = 10.0
    """Time after the run limit within which the reply to a flush must arrive."""
    close_timeout_s: float = 10.0
    files_timeout_s: float = 60.0
    """Time for a request about files, without the transfer of an input."""
    input_timeout_s: float = 600.0
    """Time for the transfer of one input."""
    check_interval_s: float = 2.0
    """Time between two health checks of a runner that answers."""
    ping_interval_s: float = 10.0
    """Time between two pings on a connection, and the time within which the runner must answer one."""


class RunnerClient:
    """A ``Sandbox`` that delegates to runners. Sessions connect at ``prepare`` or at their first block."""

    def __init__(self, settings: RunnerClientSettings) -> None:
        """Create the client without connecting.

        Raises:
            ValueError: an address or a TLS file is unusable.
        """
        self._settings = settings
        self._balancer = RunnerBalancer(
            _endpoints(settings),
            connect_timeout_s=settings.connect_timeout_s,
            check_interval_s=settings.check_interval_s,
        )
        self._connected: set[RunnerSession] = set()

    async def start(self) -> None:
        """Wait until one runner is ready, and check all of them from now on.

        Raises:
            SandboxError: none was ready within ``start_timeout_s``.
        """
        timeout_s = self._settings.start_timeout_s or self._settings.connect_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                while not await self.ready():  # noqa: ASYNC110  (another process, no event)
                    await asyncio.sleep(0.1)
        except TimeoutError:
            problems = "; ".join(
                f"the runner at {host.address} is not ready: {host.not_ready or 'no answer'}"
                for host in self._balancer.hosts
            )
            raise SandboxError(problems) from None
        await self._balancer.check_all()  # the first sessions need the loads of all
        self._balancer.start()

    def session(self, limits: SessionLimits, tools: ToolHost | None = None) -> RunnerSession:
        """Return a session that leases its container at the first ``invoke``. This process runs the tools."""
        return RunnerSession(self._balancer, limits, self._settings, self._connected, tools)

    def file_session(self, limits: SessionLimits) -> RunnerFileSession:
        """Return a session with files."""
        return RunnerFileSession(
            self._balancer, replace(limits, figures=limits.figures or "png"), self._settings, self._connected
        )

    async def ready(self) -> bool:
        """Return whether a runner has containers. Answers within two seconds and never raises."""
        return await self._balancer.ready()

    def runners(self) -> list[RunnerStatus]:
        """Return the state of each runner, as of the last request to it."""
        return [host.status() for host in self._balancer.hosts]

    async def problems(self) -> dict[str, str | None]:
        """Check each runner. Return by address why it is not ready; None for those that are."""
        await self._balancer.check_all()
        return {str(host.address): host.not_ready for host in self._balancer.hosts}

    async def stop(self) -> None:
        """Close the open sessions."""
        await asyncio.gather(*(session.close() for session in list(self._connected)))
        await self._balancer.stop()


def _endpoints(settings: RunnerClientSettings) -> list[Endpoint]:
    addresses = list(dict.fromkeys(Address.parse(text) for text in settings.addresses))
    if not addresses:
        raise ValueError("the address of a runner is missing")
    if settings.key_file is not None and settings.certificate_file is None:
        raise ValueError("the key of a client certificate needs its certificate")
    has_files = settings.ca_file is not None or settings.certificate_file is not None
    for address in addresses:
        if has_files and address.scheme == "ws":
            raise ValueError(f"{address} rules out TLS, but TLS files are configured: use wss://")
    context: ssl.SSLContext | None = None
    if has_files or any(address.scheme == "wss" for address in addresses):
        context = client_context(settings.ca_file, settings.certificate_file, settings.key_file)
    return [
        Endpoint(
            address,
            settings.token,
            settings.ping_interval_s,
            context if address.path is None and (has_files or address.scheme == "wss") else None,
        )
        for address in addresses
    ]


class RunnerSession:
    """A session that lives in the runner.

    A broken connection loses the namespace. The next flush reports this once, as ``sandbox_error``. Blocks
    before that flush are dropped, because they may depend on lost variables. The block after it connects
    again, to any runner. A session without a container has nothing to lose and changes the runner silently.
    """

    def __init__(
        self,
        balancer: RunnerBalancer,
        limits: SessionLimits,
        settings: RunnerClientSettings,
        connected: set[RunnerSession],
        tools: ToolHost | None = None,
    ) -> None:
        self._balancer = balancer
        self._limits = limits
        self._settings = settings
        self._connected = connected
        """The client's sessions that may have a container. The client closes them when it stops."""
        self._tools = tools
        self._run_limit_s = limits.run_limit_s
        self._connection: RunnerConnection | None = None
        self._host: RunnerHost | None = None
        self._lost: str | None = None
        self._cancelled = False
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
            if self._leased and self._connection is not None:
                await self._note_cancellation(
                    self._connection.send_nowait(request, timeout_s=self._settings.invoke_timeout_s)
                )
            else:
                await self._lease_with(request, protocol.InvokedReply)
        except ConnectionLostError as error:
            self._lost = str(error)
        except protocol.MessageError as error:
            raise SandboxError(str(error)) from None

    async def _lease_with(
        self, request: protocol.InvokeRequest | protocol.LeaseRequest, expected: type[R]
    ) -> None:
        """Send the request that leases a container. If a runner has none, try the others.

        Raises:
            QueueTimeoutError, SandboxError: no runner had a container. Nothing ran.
            ConnectionLostError: the block may have run.
        """
        full: set[RunnerHost] = set()
        while True:
            if self._connection is not None and not self._connection.is_open:
                self._disconnected()
            connection = self._connection or await self._connect()
            try:
                timeout_s = connection.queue_timeout_s + self._settings.invoke_timeout_s
                await self._request(connection, request, expected, timeout_s)
            except ConnectionLostError:
                raise
            except SandboxError as error:
                full |= {self._host} if self._host is not None else set()
                if isinstance(error, QueueTimeoutError) and not isinstance(error, protocol.QueueFullError):
                    raise  # it has waited long enough
                if not await self._move(full):
                    raise
            else:
                self._leased = True
                return

    async def _move(self, avoid: set[RunnerHost]) -> bool:
        """Connect to a runner that is not in ``avoid``. If there is none, change nothing and return False."""
        if len(avoid) == len(self._balancer.hosts):
            return False
        try:
            host, connection, granted = await self._balancer.open(self._limits, self._tools, avoid=avoid)
        except SandboxError:
            return False
        former = self._connection
        self._disconnected()
        self._adopt(host, connection, granted)
        if former is not None:
            await former.close(timeout_s=self._settings.close_timeout_s)
        return True

    async def flush(self, on_output: OnOutput | None = None) -> ExecutionResult:
        """Run the pending blocks. See ``Session.flush``. ``waited_seconds`` is measured by the client."""
        began = time.monotonic()
        connection = self._connection
        if connection is None and self._lost is None:
            return _NOTHING
        try:
            if connection is None or self._lost is not None:
                raise ConnectionLostError(self._lost or "the session is closed")
            timeout_s = self._run_limit_s + self._settings.flush_margin_s
            if self._tools is not None:
                timeout_s += self._limits.tool_wait_s
            request = protocol.FlushRequest(live_output=on_output is not None)
            reply = await self._request(connection, request, protocol.FlushedReply, timeout_s, on_output)
            result = reply.result
            self._leased &= result.status != "sandbox_error"  # after an error the next block leases a new one
        except SandboxError as error:
            self._leased = False
            if isinstance(error, ConnectionLostError):
                self._disconnected(lost=not self._cancelled)
                self._lost, self._cancelled = None, False
            result = ExecutionResult("", str(error), "sandbox_error", wall_seconds=0.0, waited_seconds=0.0)
        return replace(result, waited_seconds=time.monotonic() - began)

    async def suspend(self) -> None:
        if self._connection is not None:
            await self._connection.suspend(True)

    async def resume(self) -> None:
        if self._connection is not None:
            await self._connection.suspend(False)

    async def close(self) -> None:
        """Kill running code and release the container. Never raises; may be called twice."""
        self._closed = True
        self._connected.discard(self)
        connection = self._connection
        self._connection = None
        if connection is not None:
            await connection.close(timeout_s=self._settings.close_timeout_s)
        self._disconnected()

    async def _connect(self) -> RunnerConnection:
        host, connection, granted = await self._balancer.open(self._limits, self._tools)
        return self._adopt(host, connection, granted)

    def _adopt(
        self, host: RunnerHost, connection: RunnerConnection, granted: SessionLimits
    ) -> RunnerConnection:
        if self._closed:  # by another task in the meantime
            connection.drop()
            self._balancer.closed(host)
            raise SandboxError("the session is closed")
        self._connection, self._host = connection, host
        self._connected.add(self)
        self._run_limit_s = granted.run_limit_s
        return connection

    def _disconnected(self, *, lost: bool = False) -> None:
        self._connection = None
        if self._host is not None:
            self._balancer.closed(self._host, lost=lost)
            self._host = None

    async def _request(
        self,
        connection: RunnerConnection,
        request: protocol.RunnerRequest,
        expected: type[R],
        timeout_s: float,
        on_output: OnOutput | None = None,
    ) -> R:
        return await self._note_cancellation(
            connection.request(request, expected, timeout_s=timeout_s, on_output=on_output)
        )

    async def _note_cancellation(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except asyncio.CancelledError:
            self._lost, self._cancelled = CANCELLED, True
            raise


class RunnerFileSession(RunnerSession):
    """A session with files that lives in the runner. The open connection keeps it between requests."""

    @property
    def is_alive(self) -> bool:
        connection = self._connection
        return self._leased and self._lost is None and connection is not None and connection.is_open

    async def lease(self) -> None:
        if self._closed:
            raise SandboxError("the session is closed")
        if self._lost is not None:
            self._disconnected(lost=not self._cancelled)
            self._lost, self._cancelled = None, False
        await self._lease_with(protocol.LeaseRequest(), protocol.DoneReply)

    async def configure(self, limits: SessionLimits, tools: ToolHost | None = None) -> None:
        self._limits, self._tools = replace(limits, memory_mb=self._limits.memory_mb), tools
        self._run_limit_s = limits.run_limit_s
        if self.is_alive:
            self._alive().use_tools(tools)
            await self._ask(
                protocol.ConfigureRequest(
                    run_limit_s=limits.run_limit_s,
                    eager=limits.eager,
                    tool_wait_s=limits.tool_wait_s,
                    tool_calls=limits.tool_calls,
                    tools=() if tools is None else tuple(tools.specs),
                    figures=limits.figures,
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
            self._alive().cancel_calls()
            await self._ask(protocol.ParkRequest(freeze=False))

    async def freeze(self) -> None:
        await self._ask(protocol.ParkRequest(freeze=True))

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
