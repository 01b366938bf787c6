"""The runner: the only process with access to the Docker socket.

It serves a ``Sandbox`` to the API and the trainer. All they can request is that code runs within limits.

    GET  /health    liveness, without a token
    GET  /ready     200 or 503, with the load as a ``LoadReport``
    GET  /metrics   Prometheus metrics
    POST /drain     take no new sessions; DELETE undoes it
    WS   /session   one session per connection, see ``service.sandbox.runner.protocol``
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket

import structlog
import uvicorn
import uvloop
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from starlette.websockets import WebSocket

from service.sandbox.base import Sandbox, SandboxError
from service.sandbox.runner import protocol
from service.sandbox.runner.admission import SessionAdmission
from service.sandbox.runner.lease import Lease
from service.sandbox.runner.metrics import RunnerMetrics
from service.sandbox.runner.protocol import Address
from service.sandbox.runner.settings import RunnerSettings

_log = structlog.get_logger(__name__)
_READY_TIMEOUT_S = 2.0
_CLOSE_TIMEOUT_S = 10


class Runner:
    """State of the runner: its sandbox, its open leases and the admission of new ones."""

    def __init__(self, sandbox: Sandbox, settings: RunnerSettings) -> None:
        self.sandbox = sandbox
        self.settings = settings
        self.admission = SessionAdmission(
            settings.max_sessions, max_waiting=settings.max_waiting, timeout_s=settings.queue_timeout_s
        )
        self.metrics = RunnerMetrics(
            self.admission,
            lambda: len(self._leases),
            lambda: self._draining,
            sandbox,
            max_sessions=settings.max_sessions,
        )
        self._leases: set[Lease] = set()
        self._empty = asyncio.Event()
        self._draining = False

    async def report(self) -> protocol.LoadReport:
        """Return the load, and whether a new session would get a container. Never raises."""
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                is_ready = await self.sandbox.ready()
        except (SandboxError, TimeoutError, OSError):
            is_ready = False
        return protocol.LoadReport(
            state="draining" if self._draining else "ready" if is_ready else "not_ready",
            max_sessions=self.settings.max_sessions,
            connections=len(self._leases),
            sessions=self.admission.active,
            waiting=self.admission.waiting,
        )

    async def connect(self, websocket: WebSocket) -> None:
        """Serve one connection until it ends, or reject it with 401 or 503."""
        if not self.settings.admits(websocket.headers.get("authorization")):
            await websocket.send_denial_response(Response("wrong or missing token", 401))
        elif self._draining or len(self._leases) >= self.settings.max_connections:
            await websocket.send_denial_response(Response("no more connections now", 503))
        else:
            lease = Lease(websocket, self.sandbox, self.admission, self.metrics, self.settings)
            self._leases.add(lease)
            try:
                await websocket.accept()
                await lease.serve()
            finally:
                self._leases.discard(lease)
                if not self._leases:
                    self._empty.set()

    def close_admission(self) -> None:
        """Take no new sessions. Open ones continue."""
        if not self._draining:
            _log.info("runner_draining", sessions=self.admission.active)
        self._draining = True
        self.admission.close()

    def reopen_admission(self) -> None:
        """Undo ``close_admission``."""
        if self._draining:
            _log.info("runner_resumed")
        self._draining = False
        self.admission.reopen()

    async def drain(self) -> None:
        """Reject new sessions and wait up to ``drain_s`` for the open ones to end."""
        self.close_admission()
        self._empty.clear()
        if not self._leases:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_s):
                await self._empty.wait()


def create_runner_app(sandbox: Sandbox, settings: RunnerSettings) -> FastAPI:
    """Return the runner's app, with the ``Runner`` as ``app.state.runner``. The caller starts the sandbox."""
    runner = Runner(sandbox, settings)

    def authorized(request: Request) -> None:
        if not settings.admits(request.headers.get("authorization")):
            raise HTTPException(401, "wrong or missing token", {"WWW-Authenticate": "Bearer"})

    app = FastAPI(title="ih-grpo runner", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.runner = runner

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get(protocol.READY_PATH, dependencies=[Depends(authorized)])
    async def ready() -> JSONResponse:
        report = await runner.report()
        return JSONResponse(report.model_dump(), 200 if report.state == "ready" else 503)

    @app.post(protocol.DRAIN_PATH, dependencies=[Depends(authorized)])
    async def drain() -> JSONResponse:
        runner.close_admission()
        return JSONResponse((await runner.report()).model_dump())

    @app.delete(protocol.DRAIN_PATH, dependencies=[Depends(authorized)])
    async def resume() -> JSONResponse:
        runner.reopen_admission()
        return JSONResponse((await runner.report()).model_dump())

    @app.get("/metrics", dependencies=[Depends(authorized)])
    async def metrics() -> Response:
        return Response(runner.metrics.render(), media_type="text/plain; version=0.0.4")

    app.add_api_websocket_route(protocol.SESSION_PATH, runner.connect)
    return app


class RunnerServer(uvicorn.Server):
    """Uvicorn server that starts the sandbox first, stops it last, and drains before closing connections.

    A second SIGINT aborts the drain.

    Raises:
        ValueError: the TLS files are unusable.
    """

    def __init__(self, sandbox: Sandbox, settings: RunnerSettings) -> None:
        app = create_runner_app(sandbox, settings)
        self.runner: Runner = app.state.runner
        config = uvicorn.Config(
            app,
            ws="websockets-sansio",
            ws_max_size=protocol.MAX_REQUEST_BYTES,
            ws_per_message_deflate=False,
            ws_ping_interval=settings.ping_interval_s,
            ws_ping_timeout=settings.ping_interval_s,
            lifespan="off",
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=_CLOSE_TIMEOUT_S,
        )
        config.load()
        config.ssl = settings.tls_context()
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the sandbox, then accept connections.

        Raises:
            SandboxError: the sandbox did not start.
        """
        await self.runner.sandbox.start()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then close the remaining connections and stop the sandbox."""
        drain = asyncio.create_task(self.runner.drain())
        while not drain.done() and not self.force_exit:
            await asyncio.wait({drain}, timeout=0.1)
        drain.cancel()
        address = Address.parse(self.runner.settings.bind)
        if address.path is not None:
            address.path.unlink(missing_ok=True)  # now: uvicorn re-raises the signal at its end
        await super().shutdown(sockets)
        await self.runner.sandbox.stop()


async def serve(sandbox: Sandbox, settings: RunnerSettings) -> None:
    """Listen and serve until SIGTERM or SIGINT; see ``serve_runner``. SIGUSR1 starts a drain."""
    server = RunnerServer(sandbox, settings)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, server.runner.close_admission)
    with Address.parse(settings.bind).listen(settings.socket_mode) as listener:
        _log.info(
            "runner_starting",
            address=settings.bind,
            max_sessions=settings.max_sessions,
            tls=settings.tls_certificate is not None,
        )
        await server.serve(sockets=[listener])


def serve_runner(settings: RunnerSettings, sandbox: Sandbox) -> None:
    """Run the runner in this process until SIGTERM or SIGINT.

    The pool is filled and the isolation checks pass before the first request is served.

    Raises:
        OSError: the address is in use or not permitted.
        ValueError: the TLS files are unusable.
        SandboxError: the sandbox did not start or failed an isolation check.
    """
    uvloop.run(serve(sandbox, settings))
