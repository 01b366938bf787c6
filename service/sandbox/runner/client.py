"""The runner as a ``Sandbox``: what the API and the trainer hold in place of the Docker socket."""

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
from service.sandbox.runner import protocol as wire
from service.sandbox.runner.connection import ConnectionLostError, RunnerConnection
from service.sandbox.runner.protocol import Address

_READY_TIMEOUT_S = 2.0
R = TypeVar("R", bound=wire.Reply)
T = TypeVar("T")
_NOTHING = ExecutionResult("", "", "ok", wall_seconds=0.0, waited_seconds=0.0)


@dataclass(frozen=True, slots=True)
class RunnerClientSettings:
    """Where the runner is, and how long to wait for it. Times in seconds."""

    address: str
    """``unix:/path/to.sock`` or ``host:port``."""
    token: SecretStr
    connect_timeout_s: float = 10.0
    """How long to try to reach a runner that is away, as while it restarts."""
    start_timeout_s: float | None = None
    """How long ``start`` waits for it to be ready; as ``connect_timeout_s`` where unset."""
    invoke_timeout_s: float = 90.0
    """How long a block may wait for a container; more than the runner's and its pool's queues take."""
    flush_margin_s: float = 10.0
    """How much later than the run limit the reply to a flush may come."""
    close_timeout_s: float = 10.0


class RunnerClient:
    """A ``Sandbox`` that is a runner elsewhere. Sessions connect at ``prepare`` or at their first block."""

    def __init__(self, settings: RunnerClientSettings) -> None:
        self._settings = settings
        self._address = Address.parse(settings.address)
        self._http: httpx.AsyncClient | None = None
        self._connected: set[RunnerSession] = set()

    async def start(self) -> None:
        """Wait up to ``start_timeout_s`` for the runner to be ready; raises SandboxError when it is not."""
        trouble: str | None = "no answer"
        timeout_s = self._settings.start_timeout_s or self._settings.connect_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                while (trouble := await self._trouble()) is not None:  # noqa: ASYNC110  (another process: nothing to wait on)
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise SandboxError(f"the runner at {self._address} is not ready: {trouble}") from None

    def session(self, limits: SessionLimits) -> RunnerSession:
        """A session that takes its container at the first ``invoke``, not before."""
        return RunnerSession(self._address, limits, self._settings, self._connected)

    async def ready(self) -> bool:
        """Whether the runner has containers to give; answers within two seconds and never raises."""
        return await self._trouble() is None

    async def stop(self) -> None:
        """Close the sessions still open."""
        await asyncio.gather(*(session.close() for session in list(self._connected)))
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def _trouble(self) -> str | None:
        """Why the runner is not ready; None if it is."""
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
    """One episode's namespace, in the runner.

    When the connection breaks, the namespace is gone. The next flush tells so, once, by a ``sandbox_error``;
    blocks before that flush are dropped, since they may rest on what is gone. The next one connects anew.
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
        """The client's sessions that may have a container: it closes them when it stops."""
        self._run_limit_s = limits.run_limit_s
        self._connection: RunnerConnection | None = None
        self._lost: str | None = None
        self._leased = False
        """A container is there and takes blocks: none needs to be waited for."""
        self._closed = False

    async def prepare(self) -> None:
        """Connect and open the session, so that the runner expects blocks; see ``Session.prepare``."""
        if self._closed or self._connection is not None or self._lost is not None:
            return
        with contextlib.suppress(SandboxError):  # the first block tries again, and reports the failure
            await self._connect()

    async def invoke(self, code: str) -> None:
        """Add a pending block; waits until there is a container for it.

        Raises:
            QueueTimeoutError: no container came free in time.
            SandboxError: the runner can't be reached or refuses the block. Nothing was run.
        """
        if self._closed:
            raise SandboxError("the session is closed")
        if self._lost is not None:
            return
        try:
            request = wire.invoke(code)
            connection = self._connection or await self._connect()
            if self._leased:
                await self._unless_cancelled(
                    connection.tell(request, timeout_s=self._settings.invoke_timeout_s)
                )
            else:
                await self._ask(connection, request, wire.Invoked, self._settings.invoke_timeout_s)
                self._leased = True
        except ConnectionLostError as error:
            self._lost = str(error)
        except wire.MessageError as error:
            raise SandboxError(str(error)) from None

    async def flush(self) -> ExecutionResult:
        """Run all that is pending; see ``Session.flush``. ``waited_seconds`` is what this side waited."""
        began = time.monotonic()
        connection = self._connection
        if connection is None and self._lost is None:
            return _NOTHING
        try:
            if connection is None or self._lost is not None:
                raise ConnectionLostError(self._lost or "the session is closed")
            timeout_s = self._run_limit_s + self._settings.flush_margin_s
            result = (await self._ask(connection, wire.Flush(), wire.Flushed, timeout_s)).result
            self._leased &= result.status != "sandbox_error"  # else the next block takes a new container
        except SandboxError as error:
            self._leased = False
            if isinstance(error, ConnectionLostError):
                self._connection, self._lost = None, None
            result = ExecutionResult("", str(error), "sandbox_error", wall_seconds=0.0, waited_seconds=0.0)
        return replace(result, waited_seconds=time.monotonic() - began)

    async def close(self) -> None:
        """Kill what runs and give the container up. Never raises; may be called twice."""
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
        )
        if self._closed:  # meanwhile, by another task
            connection.drop()
            raise SandboxError("the session is closed")
        self._connection = connection
        self._connected.add(self)
        self._run_limit_s = granted.run_limit_s
        return connection

    async def _ask(
        self, connection: RunnerConnection, request: wire.Request, expected: type[R], timeout_s: float
    ) -> R:
        return await self._unless_cancelled(connection.ask(request, expected, timeout_s=timeout_s))

    async def _unless_cancelled(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except asyncio.CancelledError:
            self._lost = "an earlier call was cancelled, which ended its session"
            raise
