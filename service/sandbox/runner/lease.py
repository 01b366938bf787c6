"""One connection to the runner: one session, which ends with it."""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
from typing import Any

import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from service.sandbox.base import Sandbox, SandboxError, Session, SessionLimits
from service.sandbox.runner import protocol as wire
from service.sandbox.runner.admission import Admission
from service.sandbox.runner.metrics import RunnerMetrics
from service.sandbox.runner.settings import RunnerSettings

_log = structlog.get_logger(__name__)


class Lease:
    """Serves one accepted connection. Code and output pass through and are never logged."""

    def __init__(
        self,
        websocket: WebSocket,
        sandbox: Sandbox,
        admission: Admission,
        metrics: RunnerMetrics,
        settings: RunnerSettings,
    ) -> None:
        self._websocket = websocket
        self._sandbox = sandbox
        self._admission = admission
        self._metrics = metrics
        self._settings = settings
        self._admitted = False

    async def serve(self) -> None:
        """Answer requests until the client closes, drops, breaks the protocol, or its time is over."""
        end: tuple[int, str] = (1000, "")
        try:
            async with asyncio.timeout(self._settings.lease_s):
                await self._converse()
        except TimeoutError:
            end = (wire.CLOSE_LEASE_OVER, f"the lease is over after {self._settings.lease_s:g} s")
        except wire.MessageError as error:
            self._metrics.refused.labels("message").inc()
            end = (wire.CLOSE_VIOLATION, str(error))
        await self._hang_up(*end)

    async def _converse(self) -> None:
        message = await self._receive()
        if isinstance(message, wire.Close):
            return
        if not isinstance(message, wire.Open):
            raise wire.MessageError("type: the first message must be open")
        limits = SessionLimits(min(message.run_limit_s, self._settings.max_run_limit_s), message.eager)
        session = self._sandbox.session(limits)
        try:
            await self._send(wire.Opened(run_limit_s=limits.run_limit_s, eager=limits.eager))
            await session.prepare()  # who opens a session is about to send blocks
            await self._serve_session(session)
        finally:
            await session.close()
            if self._admitted:
                self._admission.leave()

    async def _serve_session(self, session: Session) -> None:
        """Read on while a request is answered, so that the client's end is seen at once, mid-call too."""
        requests: asyncio.Queue[wire.Invoke | wire.Flush] = asyncio.Queue(maxsize=wire.MAX_AHEAD)
        worker = asyncio.create_task(self._answer_all(session, requests))
        try:
            while not isinstance(message := await self._receive(), wire.Close):
                if isinstance(message, wire.Open):
                    raise wire.MessageError("type: open may be sent only once")
                requests.put_nowait(message)
        except asyncio.QueueFull:
            raise wire.MessageError(
                f"type: more than {wire.MAX_AHEAD} requests wait for their replies"
            ) from None
        finally:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)

    async def _answer_all(self, session: Session, requests: asyncio.Queue[wire.Invoke | wire.Flush]) -> None:
        try:
            while True:
                await self._send(await self._answer(session, await requests.get()))
        except Exception as error:
            # Rendered here: a logger that prints local variables would print the code.
            _log.error(
                "lease_failed", error=repr(error), traceback="".join(traceback.format_exception(error))
            )
            await self._hang_up(wire.CLOSE_INTERNAL, "the runner failed; see its log")

    async def _answer(self, session: Session, request: wire.Invoke | wire.Flush) -> wire.Reply:
        try:
            if isinstance(request, wire.Flush):
                result = await session.flush()
                self._metrics.flushes.labels(result.status).inc()
                self._metrics.waited_seconds.observe(result.waited_seconds)
                self._metrics.wall_seconds.observe(result.wall_seconds)
                return wire.flushed(result)
            await self._admit()
            await session.invoke(request.code)
        except SandboxError as error:
            reply = wire.failed(error)
            self._metrics.refused.labels(reply.reason).inc()
            return reply
        return wire.Invoked()

    async def _admit(self) -> None:
        if self._admitted:
            return
        began = time.monotonic()
        await self._admission.enter()
        self._admitted = True
        self._metrics.admission_seconds.observe(time.monotonic() - began)

    async def _receive(self) -> wire.Request:
        event: dict[str, Any] = dict(await self._websocket.receive())
        if event["type"] == "websocket.disconnect":
            return wire.Close()
        return wire.decode_request(event.get("text"))

    async def _send(self, reply: wire.Reply) -> None:
        await self._websocket.send_text(wire.encode(reply))

    async def _hang_up(self, code: int, reason: str) -> None:
        cut = reason.encode()[: wire.MAX_CLOSE_REASON_BYTES].decode(errors="ignore")
        with contextlib.suppress(RuntimeError, OSError, WebSocketDisconnect):  # the client was faster
            await self._websocket.close(code, cut)
