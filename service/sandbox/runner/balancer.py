"""Connections to several runners: health checks, and sessions on the least loaded runner that answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence

import httpx
from pydantic import ValidationError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from service.sandbox.base import SandboxError, SessionLimits
from service.sandbox.runner import protocol
from service.sandbox.runner.connection import (
    BusyError,
    ConnectionLostError,
    Endpoint,
    RunnerConnection,
    UnreachableError,
)
from service.sandbox.runner.hosts import RunnerHost, choose
from service.tools.base import ToolHost

_READY_TIMEOUT_S = 2.0
_TICK_S = 0.25


class RunnerBalancer:
    """Opens sessions on the runners at ``endpoints``. Times in seconds."""

    def __init__(
        self, endpoints: Sequence[Endpoint], *, connect_timeout_s: float, check_interval_s: float
    ) -> None:
        self.hosts = [RunnerHost(endpoint.address) for endpoint in endpoints]
        self._endpoints = dict(zip(self.hosts, endpoints, strict=True))
        self._connect_timeout_s = connect_timeout_s
        self._check_interval_s = check_interval_s
        self._http: dict[RunnerHost, httpx.AsyncClient] = {}
        self._monitors: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Check all runners from now on."""
        self._monitors = [asyncio.create_task(self._monitor(host)) for host in self.hosts]

    async def stop(self) -> None:
        """End the checks."""
        for monitor in self._monitors:
            monitor.cancel()
        await asyncio.gather(*self._monitors, return_exceptions=True)
        self._monitors = []
        for http in self._http.values():
            await http.aclose()
        self._http = {}

    async def ready(self) -> bool:
        """Check the runners and return whether one is ready. Answers within two seconds and never raises."""
        checks = [asyncio.create_task(self._check(host)) for host in self.hosts]
        try:
            for check in asyncio.as_completed(checks):
                if await check:
                    return True
        finally:
            for task in checks:
                task.cancel()
            await asyncio.gather(*checks, return_exceptions=True)
        return False

    async def check_all(self) -> None:
        """Check each runner once. Never raises."""
        await asyncio.gather(*(self._check(host) for host in self.hosts))

    async def open(
        self,
        limits: SessionLimits,
        tools: ToolHost | None = None,
        *,
        avoid: Collection[RunnerHost] = (),
    ) -> tuple[RunnerHost, RunnerConnection, SessionLimits]:
        """Open a session on the least loaded runner, or on the next one if it does not answer.

        Retries for ``connect_timeout_s`` while no runner is reachable. This is safe, since no code was sent.

        Args:
            limits: requested limits; the runner returns those that it grants.
            tools: tools that the code may call; run by this process.
            avoid: runners not to use. If there are any, each of the others is tried once.

        Raises:
            SandboxError: no runner accepted the session.
        """
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type((UnreachableError, ConnectionLostError)),
            wait=wait_random_exponential(multiplier=0.05, max=1.0),
            stop=stop_after_delay(0.0 if avoid else self._connect_timeout_s),
            reraise=True,
        ):
            with attempt:
                return await self._open_once(limits, tools, avoid)
        raise AssertionError("tenacity either returns or raises")

    async def _open_once(
        self, limits: SessionLimits, tools: ToolHost | None, avoid: Collection[RunnerHost]
    ) -> tuple[RunnerHost, RunnerConnection, SessionLimits]:
        """Try each runner once."""
        tried = set(avoid)
        rejection: SandboxError | None = None
        unreachable: SandboxError | None = None
        while (host := choose(self.hosts, tried=tried)) is not None:
            tried.add(host)
            host.opening()  # counted now, so that sessions that start at the same time choose another one
            try:
                connection, granted = await RunnerConnection.open(self._endpoints[host], limits, tools)
            except BaseException as error:
                host.closed()
                if not isinstance(error, SandboxError):
                    raise
                if isinstance(error, BusyError):
                    host.refused()
                else:
                    host.failed(str(error), time.monotonic())
                if isinstance(error, UnreachableError | ConnectionLostError):
                    unreachable = error
                else:
                    rejection = rejection or error
            else:
                host.answered()
                return host, connection, granted
        raise unreachable or rejection or SandboxError("no other runner is configured")

    def closed(self, host: RunnerHost, *, lost: bool = False) -> None:
        """Count the end of a session; ``lost`` if its connection broke."""
        host.closed()
        if lost:
            host.lost(time.monotonic())

    async def _monitor(self, host: RunnerHost) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            if time.monotonic() >= host.retry_at:
                await self._check(host)

    async def _check(self, host: RunnerHost) -> bool:
        """Ask a runner for its load. Return whether it is ready."""
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                answer = await self._http_client(host).get(protocol.READY_PATH)
            report = protocol.LoadReport.model_validate_json(answer.content)
        except (httpx.HTTPError, TimeoutError) as error:
            host.failed(str(error) or type(error).__name__, time.monotonic())
        except ValidationError:
            host.failed(f"status {answer.status_code} {answer.text[:200]}", time.monotonic())
        else:
            host.reported(report, time.monotonic(), self._check_interval_s)
        return host.available

    def _http_client(self, host: RunnerHost) -> httpx.AsyncClient:
        if host not in self._http:
            endpoint = self._endpoints[host]
            path = endpoint.address.path
            transport = httpx.AsyncHTTPTransport(
                uds=None if path is None else str(path), verify=endpoint.tls or False
            )
            self._http[host] = httpx.AsyncClient(
                base_url=f"{'http' if endpoint.tls is None else 'https'}://{endpoint.address.authority}",
                transport=transport,
                headers=endpoint.headers(),
                trust_env=False,
            )
        return self._http[host]
