"""Client of the runner: a ``Sandbox`` for the API and the trainer, which need no access to Docker."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import TypeVar

import httpx
from pydantic import SecretStr

from service.sandbox.base import ExecutionResult, SandboxError, SessionLimits
from service.sandbox.runner import protocol
from service.sandbox.runner.connection import ConnectionLostError, RunnerConnection
from service.sandbox.runner.protocol import Address
from service.tools.base import ToolHost

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

    def session(self, limits: SessionLimits, tools: ToolHost | None = None) -> RunnerSession:
        """Return a session that leases its container at the first ``invoke``. This process runs the tools."""
        return RunnerSession(self._address, limits, self._settings, self._connected, tools)

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
        tools: ToolHost | None = None,
    ) -> None:
        self._address = address
        self._limits = limits
        self._settings = settings
        self._connected = connected
        """The client's sessions that may have a container. The client closes them when it stops."""
        self._tools = tools
        self._run_limit_s = limits.run_limit_s
        self._connection: RunnerConnection | None = None
        self._lost: str | None = None
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
            if self._tools is not None:
                timeout_s += self._limits.tool_wait_s
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
            tools=self._tools,
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
