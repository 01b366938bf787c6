"""Runner side of one connection: one session, which ends with the connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final, cast

import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from service.sandbox.base import (
    ExecutionResult,
    OutputChunk,
    Sandbox,
    SandboxError,
    Session,
    SessionLimits,
)
from service.sandbox.files import FileSandbox, FileSession
from service.sandbox.runner import protocol
from service.sandbox.runner.admission import SessionAdmission
from service.sandbox.runner.metrics import RunnerMetrics
from service.sandbox.runner.settings import RunnerSettings
from service.tools.base import ToolDeniedError, ToolError, ToolSpec

_log = structlog.get_logger(__name__)
_CHUNKS_AHEAD: Final = 4
_Request = protocol.InvokeRequest | protocol.FlushRequest | protocol.FileRequest


class ClientTools:
    """The tools of a session, which its client runs.

    Args:
        specs: the tools.
        send: sends a message to the client.
    """

    def __init__(
        self, specs: Sequence[ToolSpec], send: Callable[[protocol.RunnerReply], Coroutine[Any, Any, None]]
    ) -> None:
        self.specs = specs
        self._send = send
        self._open: dict[str, asyncio.Future[protocol.ToolResultMessage]] = {}
        self._announcing: set[asyncio.Future[None]] = set()

    async def call(self, name: str, arguments: dict[str, Any], call_id: str) -> object:
        """Let the client run a tool. See `ToolHost`."""
        answer: asyncio.Future[protocol.ToolResultMessage] = asyncio.get_running_loop().create_future()
        self._open[call_id] = answer
        try:
            await self._send(
                protocol.ToolCallMessage(call_id=call_id, name=name, arguments=json.dumps(arguments))
            )
            result = await answer
        finally:
            del self._open[call_id]
        if not result.ok:
            raise ToolDeniedError(result.value) if result.denied else ToolError(result.value)
        try:
            return json.loads(result.value)
        except (ValueError, RecursionError):
            raise ToolError("the tool returned something that is not JSON") from None

    def announce(self, name: str, arguments: dict[str, Any]) -> None:
        """Notify the client of a call. See `AnnouncedTools`."""
        message = protocol.ToolHeldMessage(name=name, arguments=json.dumps(arguments))
        task = asyncio.create_task(self._send(message))
        self._announcing.add(task)
        task.add_done_callback(self._announcing.discard)

    def answer(self, message: protocol.ToolResultMessage) -> None:
        """Take a result. The result of a call that has ended is ignored."""
        future = self._open.get(message.call_id)
        if future is not None and not future.done():
            future.set_result(message)


class Lease:
    """Handler of one accepted connection. Code and output are never logged."""

    def __init__(
        self,
        websocket: WebSocket,
        sandbox: Sandbox,
        admission: SessionAdmission,
        metrics: RunnerMetrics,
        settings: RunnerSettings,
    ) -> None:
        self._websocket = websocket
        self._sandbox = sandbox
        self._admission = admission
        self._metrics = metrics
        self._settings = settings
        self._admitted = False
        self._tools: ClientTools | None = None
        self._has_files = False
        self._bytes_due = 0
        """Bytes of an input that the client has announced and not sent yet."""
        self._chunks: asyncio.Queue[bytes] = asyncio.Queue(maxsize=_CHUNKS_AHEAD)

    async def serve(self) -> None:
        """Answer requests until the client leaves or violates the protocol, or the lease expires."""
        end: tuple[int, str] = (1000, "")
        try:
            async with asyncio.timeout(self._settings.lease_s):
                await self._run_session()
        except TimeoutError:
            end = (protocol.CLOSE_LEASE_OVER, f"the lease is over after {self._settings.lease_s:g} s")
        except protocol.MessageError as error:
            self._metrics.refused.labels("message").inc()
            end = (protocol.CLOSE_VIOLATION, str(error))
        await self._disconnect(*end)

    async def _run_session(self) -> None:
        message = await self._receive()
        if isinstance(message, protocol.CloseRequest):
            return
        if not isinstance(message, protocol.OpenRequest):
            raise protocol.MessageError("type: the first message must be open")
        limits = self._granted(message)
        session = self._open(message, limits)
        try:
            await self._send(
                protocol.OpenedReply(
                    run_limit_s=limits.run_limit_s,
                    eager=limits.eager,
                    queue_timeout_s=self._settings.queue_timeout_s,
                )
            )
            await session.prepare()  # a client that opens a session is about to send blocks
            await self._answer_requests(session)
        finally:
            await session.close()
            if self._admitted:
                self._admission.leave()

    def _granted(self, request: protocol.OpenRequest | protocol.ConfigureRequest) -> SessionLimits:
        return SessionLimits(
            run_limit_s=min(request.run_limit_s, self._settings.max_run_limit_s),
            eager=request.eager,
            tool_wait_s=min(request.tool_wait_s, self._settings.max_tool_wait_s),
            tool_calls=request.tool_calls,
        )

    def _client_tools(self, request: protocol.OpenRequest | protocol.ConfigureRequest) -> ClientTools | None:
        """Return the tools of the following flushes. From now on, results belong to their calls."""
        self._tools = ClientTools(request.tools, self._send) if request.tools else None
        return self._tools

    def _open(self, request: protocol.OpenRequest, limits: SessionLimits) -> Session:
        if request.files is None:
            return self._sandbox.session(limits, self._client_tools(request))
        if not isinstance(self._sandbox, FileSandbox):
            raise protocol.MessageError("files: this sandbox has no sessions with files")
        self._has_files = True
        return self._sandbox.file_session(replace(limits, memory_mb=request.files.memory_mb, figures="png"))

    async def _answer_requests(self, session: Session) -> None:
        """Keep reading while a request is answered, so that a disconnect is noticed immediately."""
        requests: asyncio.Queue[_Request] = asyncio.Queue(maxsize=protocol.MAX_AHEAD)
        worker = asyncio.create_task(self._answer_all(session, requests))
        try:
            while not isinstance(message := await self._receive_any(), protocol.CloseRequest):
                if isinstance(message, bytes):
                    await self._chunks.put(message)
                    continue
                if isinstance(message, protocol.OpenRequest):
                    raise protocol.MessageError("type: open may be sent only once")
                if isinstance(message, protocol.ToolResultMessage):
                    if self._tools is not None:
                        self._tools.answer(message)
                    continue
                if isinstance(message, protocol.SuspendMessage):
                    await (session.suspend() if message.on else session.resume())
                    continue
                if isinstance(message, protocol.PutRequest):
                    self._bytes_due = message.size
                requests.put_nowait(message)
        except asyncio.QueueFull:
            raise protocol.MessageError(
                f"type: more than {protocol.MAX_AHEAD} requests wait for their replies"
            ) from None
        finally:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)

    async def _answer_all(self, session: Session, requests: asyncio.Queue[_Request]) -> None:
        try:
            while True:
                await self._send(await self._answer(session, await requests.get()))
        except Exception as error:
            # Formatted here, because a logger that prints local variables would print the code.
            _log.error(
                "lease_failed", error=repr(error), traceback="".join(traceback.format_exception(error))
            )
            await self._disconnect(protocol.CLOSE_INTERNAL, "the runner failed; see its log")

    async def _answer(self, session: Session, request: _Request) -> protocol.RunnerReply:
        try:
            if not isinstance(request, protocol.InvokeRequest | protocol.FlushRequest):
                return await self._answer_file_request(cast("FileSession", session), request)
            if isinstance(request, protocol.FlushRequest):
                result = await self._flush(session, live_output=request.live_output)
                self._metrics.flushes.labels(result.status).inc()
                self._metrics.waited_seconds.observe(result.waited_seconds)
                self._metrics.wall_seconds.observe(result.wall_seconds)
                return protocol.flushed_reply(result)
            await self._admit()
            await session.invoke(request.code)
        except SandboxError as error:
            reply = protocol.failed_reply(error)
            self._metrics.refused.labels(reply.reason).inc()
            return reply
        return protocol.InvokedReply()

    async def _flush(self, session: Session, *, live_output: bool) -> ExecutionResult:
        """Flush the session. A client that reads its live output slowly does not delay the code."""
        if not live_output:
            return await session.flush()
        chunks: asyncio.Queue[OutputChunk | None] = asyncio.Queue()  # bounded by the limit of live output
        sending = asyncio.create_task(self._send_output(chunks))
        try:
            result = await session.flush(chunks.put_nowait)
            chunks.put_nowait(None)
            await sending
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        return result

    async def _send_output(self, chunks: asyncio.Queue[OutputChunk | None]) -> None:
        with contextlib.suppress(RuntimeError, OSError, WebSocketDisconnect):  # the client disconnected
            while (chunk := await chunks.get()) is not None:
                await self._send(protocol.OutputMessage(chunk=chunk))

    async def _answer_file_request(
        self, session: FileSession, request: protocol.FileRequest
    ) -> protocol.RunnerReply:
        """Answer a request of a session with files.

        Raises:
            SandboxError: the container is lost, or none became free.
        """
        if not self._has_files:
            raise SandboxError("the session was opened without files")
        try:
            match request:
                case protocol.LeaseRequest():
                    await self._admit()
                    await session.lease()
                case protocol.ConfigureRequest():
                    limits = replace(self._granted(request), figures=request.figures)
                    await session.configure(limits, self._client_tools(request))
                case protocol.PutRequest():
                    await self._put(session, request)
                case protocol.RemoveRequest():
                    await session.remove(request.name)
                case protocol.ChangesRequest():
                    return protocol.ChangesReply(changes=await session.changes())
                case protocol.ReadRequest():
                    async with aclosing(session.read(request.item)) as chunks:
                        async for chunk in chunks:
                            await self._websocket.send_bytes(chunk)
                case protocol.ParkRequest():
                    await (session.freeze() if request.freeze else session.park())
        except ValueError as error:
            return protocol.done_reply(error)
        return protocol.done_reply()

    async def _put(self, session: FileSession, request: protocol.PutRequest) -> None:
        left = request.size

        async def content() -> AsyncGenerator[bytes, None]:
            nonlocal left
            while left:
                chunk = await self._chunks.get()
                left -= len(chunk)
                yield chunk

        try:
            await session.put(request.name, request.size, content())
        finally:
            while left:  # of an input that was rejected
                left -= len(await self._chunks.get())

    async def _admit(self) -> None:
        if self._admitted:
            return
        began = time.monotonic()
        await self._admission.enter()
        self._admitted = True
        self._metrics.admission_seconds.observe(time.monotonic() - began)

    async def _receive(self) -> protocol.RunnerRequest:
        event: dict[str, Any] = dict(await self._websocket.receive())
        if event["type"] == "websocket.disconnect":
            return protocol.CloseRequest()
        return protocol.decode_request(event.get("text"))

    async def _receive_any(self) -> protocol.RunnerRequest | bytes:
        """Return the next request, or the next part of an input.

        Raises:
            MessageError: a frame is invalid, or not the one that must follow.
        """
        event: dict[str, Any] = dict(await self._websocket.receive())
        if event["type"] == "websocket.disconnect":
            return protocol.CloseRequest()
        data: bytes | None = event.get("bytes")
        if data is None:
            request = protocol.decode_request(event.get("text"))
            anytime = protocol.CloseRequest | protocol.ToolResultMessage | protocol.SuspendMessage
            if self._bytes_due and not isinstance(request, anytime):
                raise protocol.MessageError("type: the announced input is not complete")
            return request
        if not data or len(data) > self._bytes_due:
            raise protocol.MessageError("frame: binary data that no request has announced")
        self._bytes_due -= len(data)
        return data

    async def _send(self, reply: protocol.RunnerReply) -> None:
        await self._websocket.send_text(protocol.encode(reply))

    async def _disconnect(self, code: int, reason: str) -> None:
        cut = reason.encode()[: protocol.MAX_CLOSE_REASON_BYTES].decode(errors="ignore")
        with contextlib.suppress(RuntimeError, OSError, WebSocketDisconnect):  # the client disconnected first
            await self._websocket.close(code, cut)
